//! Tests of the whole server over loopback, with its own small client.

mod client;
mod raw_frames;

use super::*;
use crate::processor::RewriteMode;
use crate::{
    fixtures::{active_rules, body, chat, first_message, response_headers},
    proto,
    readiness::ServerStage,
};
use client::{ClientCall, GrpcClient};
use std::net::SocketAddr;
use tokio::{net::TcpStream, task::JoinSet};
use tonic::Code;

/// A running server, stopped when it is dropped.
struct TestServer {
    grpc: SocketAddr,
    health: SocketAddr,
    metrics: SocketAddr,
    readiness: ServerReadiness,
    stop: CancellationToken,
    server: JoinSet<io::Result<()>>,
}

impl TestServer {
    async fn start(settings: ServerSettings) -> Self {
        let server = ExtProcServer::new(active_rules(), settings);
        let readiness = server.readiness().clone();
        let listen = || TcpListener::bind("127.0.0.1:0");
        let listeners = Listeners {
            grpc: listen().await.unwrap(),
            health: listen().await.unwrap(),
            metrics: listen().await.unwrap(),
        };
        let [grpc, health, metrics] =
            [&listeners.grpc, &listeners.health, &listeners.metrics].map(|listener| listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(server.serve(listeners, stop.clone()));
        Self { grpc, health, metrics, readiness, stop, server: tasks }
    }

    async fn start_serving() -> Self {
        let test = Self::start(ServerSettings { drain_delay: Duration::ZERO, ..ServerSettings::default() }).await;
        test.readiness.set_serving();
        test
    }

    /// Requests `path` from the metrics port.
    async fn get(&self, path: &str) -> (u16, String) {
        client::get(self.metrics, path).await
    }

    async fn join(&mut self) {
        self.server.join_next().await.unwrap().unwrap().unwrap();
    }
}

const DUPLEX: proto::BodySendMode = proto::BodySendMode::FullDuplexStreamed;

/// Starts a request: sends its headers and body and reads the replies.
async fn start_request(client: &mut GrpcClient) -> ClientCall {
    let mut call = client.process().await;
    call.send(&chat(DUPLEX, &[]));
    call.send(&body(br#"{"model":"alias"}"#, true));
    assert!(matches!(call.next().await, proto::ProcessingAction::RequestHeaders(_)));
    assert!(matches!(call.next().await, proto::ProcessingAction::RequestBody(_)));
    call
}

#[tokio::test]
async fn request_passes_through_the_server() {
    let test = TestServer::start_serving().await;
    let mut client = GrpcClient::connect(test.grpc).await;
    let mut call = start_request(&mut client).await;
    call.send(&response_headers("200", &[]));
    let proto::ProcessingAction::ResponseHeaders(reply) = call.next().await else { panic!("unexpected reply") };
    let set = reply.response.unwrap().header_mutation.unwrap().set_headers;
    assert_eq!(set[0].header.as_ref().unwrap().value(), b"alias-v2");
    call.finish().await;
    let (status, metrics) = test.get("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "rollora_ext_proc_streams 0",
        r#"rollora_router_requests_total{rewrite="ns/r",target="alias-v2",code="2xx"} 1"#,
        concat!("rollora_ext_proc_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let (status, rules) = test.get("/rules").await;
    let report: rollora_api::router_report::RulesReport = serde_json::from_str(&rules).unwrap();
    assert_eq!((status, report.models["alias"].targets[0].model_rewrite.as_str()), (200, "alias-v2"));
}

#[tokio::test]
async fn long_buffered_body_is_accepted() {
    let test = TestServer::start_serving().await;
    let mut client = GrpcClient::connect(test.grpc).await;
    let mut call = client.process().await;
    let prompt = "x".repeat(20 << 20);
    call.send(&chat(proto::BodySendMode::Buffered, &[]));
    call.send(&body(format!(r#"{{"prompt":"{prompt}","model":"alias"}}"#).as_bytes(), true));
    assert!(matches!(call.next().await, proto::ProcessingAction::RequestHeaders(_)));
    let proto::ProcessingAction::RequestBody(reply) = call.next().await else { panic!("unexpected reply") };
    let header = reply.response.unwrap().header_mutation.unwrap().set_headers.remove(0).header.unwrap();
    assert_eq!(header.value(), (prompt.len() + r#"{"prompt":"","model":"alias-v2"}"#.len()).to_string().as_bytes());
}

#[tokio::test]
async fn many_resets_do_not_close_the_connection() {
    let test = TestServer::start_serving().await;
    assert!(raw_frames::responds_after_resets(test.grpc, 2000).await);
}

#[tokio::test]
async fn slow_reader_stops_the_sender() {
    let test = TestServer::start_serving().await;
    let mut client = GrpcClient::connect(test.grpc).await;
    let mut slow = client.process().await;
    slow.send(&chat(DUPLEX, &[]));
    let chunk = vec![b'x'; 64 * 1024];
    let count = 256;
    for _ in 0..count {
        slow.send(&body(&chunk, false));
    }
    // Other streams on the same connection continue.
    for _ in 0..10 {
        start_request(&mut client).await;
    }
    assert!(slow.unsent() > count / 2, "{} of {count} chunks were sent", count - slow.unsent());
    assert!(matches!(slow.next().await, proto::ProcessingAction::RequestHeaders(_)));
    let mut passed = 0;
    while passed < count * chunk.len() {
        let proto::ProcessingAction::RequestBody(reply) = slow.next().await else { panic!("unexpected reply") };
        let Some(proto::Mutation::StreamedResponse(part)) = reply.response.unwrap().body_mutation.unwrap().mutation
        else {
            panic!("unexpected body mutation")
        };
        passed += part.body.len();
    }
    assert_eq!(slow.unsent(), 0);
}

#[tokio::test]
async fn invalid_message_is_refused_with_a_reason() {
    let test = TestServer::start_serving().await;
    let mut client = GrpcClient::connect(test.grpc).await;
    let mut call = client.process().await;
    call.send_bytes(b"\x12\xff\xff");
    let status = call.status().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("invalid message for this method"), "{}", status.message());
    assert_eq!(client.call_unknown_method().await.code(), Code::Unimplemented);
}

#[tokio::test]
async fn requests_are_refused_until_rules_are_loaded() {
    let test = TestServer::start(ServerSettings::default()).await;
    let mut client = GrpcClient::connect(test.grpc).await;
    assert_eq!(client.process().await.initial_status().code(), Code::Unavailable);
    test.readiness.set_serving();
    start_request(&mut client).await;
}

#[tokio::test]
async fn health_is_serving_only_between_start_and_drain() {
    let mut test =
        TestServer::start(ServerSettings { drain_delay: Duration::from_mins(1), ..ServerSettings::default() }).await;
    let mut on_both = [GrpcClient::connect(test.grpc).await, GrpcClient::connect(test.health).await];
    let services = ["", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor", "inference-extension"];
    let mut watch = on_both[1].watch("readiness").await;
    let mut unknown = on_both[1].watch("unknown").await;
    assert_eq!(unknown.next_status().await, Some(proto::ServingStatus::ServiceUnknown));
    for (stage, readyz, expected) in [
        (ServerStage::Starting, 503, proto::ServingStatus::NotServing),
        (ServerStage::Serving, 200, proto::ServingStatus::Serving),
        (ServerStage::Draining, 503, proto::ServingStatus::NotServing),
    ] {
        match stage {
            ServerStage::Starting => {}
            ServerStage::Serving => test.readiness.set_serving(),
            ServerStage::Draining => test.stop.cancel(),
        }
        assert_eq!(watch.next_status().await, Some(expected));
        for client in &mut on_both {
            for service in services {
                assert_eq!(client.check(service).await.unwrap(), expected, "{service} {stage:?}");
            }
            assert_eq!(client.check("liveness").await.unwrap(), proto::ServingStatus::Serving);
            assert_eq!(client.check("unknown").await.unwrap_err().code(), Code::NotFound);
        }
        assert_eq!(test.get("/readyz").await.0, readyz);
        assert_eq!(test.get("/livez").await, (200, "ok\n".to_owned()));
    }
    assert_eq!(watch.next_status().await, None, "a watch does not delay the drain");
    test.readiness.set_serving();
    assert_eq!(test.get("/readyz").await.0, 503, "draining cannot be undone");
    test.server.abort_all();
}

#[tokio::test]
async fn open_streams_end_before_the_server_stops() {
    let mut test = TestServer::start_serving().await;
    let mut client = GrpcClient::connect(test.grpc).await;
    let mut call = start_request(&mut client).await;
    test.stop.cancel();
    while TcpStream::connect(test.grpc).await.is_ok() {
        // Until new connections are refused.
        tokio::task::yield_now().await;
    }
    assert_eq!(test.get("/rules").await.0, 200, "the operator still reads the rules");
    call.send(&response_headers("200", &[]));
    assert!(matches!(call.next().await, proto::ProcessingAction::ResponseHeaders(_)));
    call.finish().await;
    test.join().await;
}

#[tokio::test]
async fn new_requests_are_served_during_the_drain_delay() {
    let test =
        TestServer::start(ServerSettings { drain_delay: Duration::from_mins(1), ..ServerSettings::default() }).await;
    test.readiness.set_serving();
    test.stop.cancel();
    let mut client = GrpcClient::connect(test.grpc).await;
    while client.check("").await.unwrap() != proto::ServingStatus::NotServing {}
    start_request(&mut client).await;
}

#[tokio::test]
async fn streams_are_aborted_after_the_drain_timeout() {
    let short = ServerSettings {
        drain_delay: Duration::ZERO,
        drain_timeout: Duration::from_millis(50),
        ..ServerSettings::default()
    };
    let mut test = TestServer::start(short).await;
    test.readiness.set_serving();
    let mut client = GrpcClient::connect(test.grpc).await;
    let mut call = client.process().await;
    call.send(&first_message(Some(DUPLEX.into()), &[(":path", "/v1/chat/completions")], false));
    assert!(matches!(call.next().await, proto::ProcessingAction::RequestHeaders(_)));
    test.stop.cancel();
    test.join().await;
}

/// Returns the settings with `--routing-headers` and without a drain delay.
fn with_routing_headers(settings: &ServerSettings) -> ServerSettings {
    ServerSettings {
        rewrite: RewriteOptions { routing_headers: true, ..RewriteOptions::default() },
        drain_delay: Duration::ZERO,
        ..settings.clone()
    }
}

#[tokio::test]
async fn stalled_buffered_request_gets_status_408() {
    let short = ServerSettings { buffer_timeout: Duration::from_millis(50), ..ServerSettings::default() };
    for settings in [with_routing_headers(&short), ServerSettings { drain_delay: Duration::ZERO, ..short }] {
        let headers_wait = settings.rewrite.routing_headers;
        let test = TestServer::start(settings).await;
        test.readiness.set_serving();
        let mut client = GrpcClient::connect(test.grpc).await;
        let mut call = client.process().await;
        call.send(&chat(DUPLEX, &[]));
        // An incomplete name is buffered in any case.
        call.send(&body(br#"{"model":"al"#, false));
        if !headers_wait {
            assert!(matches!(call.next().await, proto::ProcessingAction::RequestHeaders(_)));
            assert!(matches!(call.next().await, proto::ProcessingAction::RequestBody(_)));
        }
        let proto::ProcessingAction::ImmediateResponse(reply) = call.next().await else { panic!("unexpected reply") };
        assert_eq!(reply.status.unwrap().code, 408);
        let status = client.check("").await.unwrap();
        assert_eq!(status, proto::ServingStatus::Serving);
    }
}

#[tokio::test]
async fn request_that_is_not_buffered_has_no_timeout() {
    let short = ServerSettings { buffer_timeout: Duration::from_millis(50), ..ServerSettings::default() };
    let test = TestServer::start(with_routing_headers(&short)).await;
    test.readiness.set_serving();
    let mut client = GrpcClient::connect(test.grpc).await;
    let mut call = client.process().await;
    call.send(&chat(DUPLEX, &[]));
    call.send(&body(br#"{"model":"alias","prompt":""#, false));
    assert!(matches!(call.next().await, proto::ProcessingAction::RequestHeaders(_)));
    assert!(matches!(call.next().await, proto::ProcessingAction::RequestBody(_)));
    let reply = tokio::time::timeout(Duration::from_millis(200), call.next()).await;
    assert!(reply.is_err(), "{reply:?}");
}

#[tokio::test]
async fn request_waits_for_the_buffer_budget() {
    let limit = 1 << 20;
    let rewrite = RewriteOptions { mode: RewriteMode::Header, ..RewriteOptions::default() };
    let test = TestServer::start(ServerSettings {
        rewrite,
        buffer_limit: limit,
        buffer_budget: limit,
        ..ServerSettings::default()
    })
    .await;
    test.readiness.set_serving();
    let mut client = GrpcClient::connect(test.grpc).await;
    let chunk = vec![b'x'; 64 * 1024];
    let mut calls = Vec::new();
    for _ in 0..2 {
        let mut call = client.process().await;
        call.send(&chat(DUPLEX, &[]));
        call.send(&body(br#"{"prompt":""#, false));
        for _ in 0..8 {
            call.send(&body(&chunk, false));
        }
        calls.push(call);
    }
    let [first, second] = &mut calls[..] else { panic!("two calls") };
    while first.unsent() > 0 && second.unsent() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (complete, stopped) = if first.unsent() == 0 { (first, second) } else { (second, first) };
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(stopped.unsent() > 3, "{} chunks are left", stopped.unsent());
    for call in [complete, stopped] {
        call.send(&body(br#"","model":"alias"}"#, true));
        let proto::ProcessingAction::RequestHeaders(reply) = call.next().await else { panic!("unexpected reply") };
        let set = reply.response.unwrap().header_mutation.unwrap().set_headers;
        assert_eq!(set.len(), 2);
    }
}

#[tokio::test]
async fn buffered_bodies_wait_for_the_budget_too() {
    let settings = ServerSettings { buffer_limit: 1 << 20, buffer_budget: 1 << 20, ..ServerSettings::default() };
    let test = TestServer::start(settings).await;
    test.readiness.set_serving();
    let mut client = GrpcClient::connect(test.grpc).await;
    let prompt = "x".repeat(900 * 1024);
    let whole = body(format!(r#"{{"prompt":"{prompt}","model":"alias"}}"#).as_bytes(), true);
    let mut calls = Vec::new();
    for _ in 0..4 {
        let mut call = client.process().await;
        call.send(&chat(proto::BodySendMode::Buffered, &[]));
        calls.push(call);
    }
    // The first call has sent only half of its message.
    let bytes = prost::Message::encode_to_vec(&whole);
    let (beginning, rest) = bytes.split_at(bytes.len() / 2);
    calls[0].send_start(bytes.len(), beginning);
    assert!(matches!(calls[0].next().await, proto::ProcessingAction::RequestHeaders(_)));
    while calls[0].unsent() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    for call in &mut calls[1..] {
        call.send(&whole);
        assert!(matches!(call.next().await, proto::ProcessingAction::RequestHeaders(_)));
    }
    let early = tokio::time::timeout(Duration::from_millis(100), calls[1].next()).await;
    assert!(early.is_err(), "{early:?}");
    calls[0].send_rest(rest);
    for call in &mut calls {
        assert!(matches!(call.next().await, proto::ProcessingAction::RequestBody(_)));
    }
}
