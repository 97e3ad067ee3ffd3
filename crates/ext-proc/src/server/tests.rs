//! The whole server over loopback, with a small client of its own.

mod client;
mod raw_frames;

use super::*;
use crate::processor::RewriteMode;
use crate::{
    fixtures::{active_rules, body, chat, first_message, response_headers},
    proto::{BodySendMode, ProcessingAction, ServingStatus},
    readiness::ServerStage,
};
use client::{ClientCall, GrpcClient};
use std::net::SocketAddr;
use tokio::{net::TcpStream, task::JoinSet};
use tonic::Code;

/// A server that runs until its bed is dropped.
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
        let bed = Self::start(ServerSettings { drain_delay: Duration::ZERO, ..ServerSettings::default() }).await;
        bed.readiness.set_serving();
        bed
    }

    /// What the metrics port says.
    async fn get(&self, path: &str) -> (u16, String) {
        client::get(self.metrics, path).await
    }

    async fn join(&mut self) {
        self.server.join_next().await.unwrap().unwrap().unwrap();
    }
}

const DUPLEX: BodySendMode = BodySendMode::FullDuplexStreamed;

/// A request on its way: its headers and body were sent and answered.
async fn start_request(client: &mut GrpcClient) -> ClientCall {
    let mut call = client.process().await;
    call.send(&chat(DUPLEX, &[]));
    call.send(&body(br#"{"model":"alias"}"#, true));
    assert!(matches!(call.next().await, ProcessingAction::RequestHeaders(_)));
    assert!(matches!(call.next().await, ProcessingAction::RequestBody(_)));
    call
}

#[tokio::test]
async fn a_request_goes_through_the_whole_server() {
    let bed = TestServer::start_serving().await;
    let mut client = GrpcClient::connect(bed.grpc).await;
    let mut call = start_request(&mut client).await;
    call.send(&response_headers("200", &[]));
    let ProcessingAction::ResponseHeaders(reply) = call.next().await else { panic!("another reply") };
    let set = reply.response.unwrap().header_mutation.unwrap().set_headers;
    assert_eq!(set[0].header.as_ref().unwrap().value(), b"alias-v2");
    call.finish().await;
    let (status, metrics) = bed.get("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "rollora_ext_proc_streams 0",
        r#"rollora_router_requests_total{rewrite="ns/r",target="alias-v2",code="2xx"} 1"#,
        concat!("rollora_ext_proc_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let (status, rules) = bed.get("/rules").await;
    let report: rollora_api::router_report::RulesReport = serde_json::from_str(&rules).unwrap();
    assert_eq!((status, report.models["alias"].targets[0].model_rewrite.as_str()), (200, "alias-v2"));
}

#[tokio::test]
async fn a_body_that_is_sent_as_one_message_may_be_as_long_as_it_was_allowed_to_be() {
    let bed = TestServer::start_serving().await;
    let mut client = GrpcClient::connect(bed.grpc).await;
    let mut call = client.process().await;
    let prompt = "x".repeat(20 << 20);
    call.send(&chat(BodySendMode::Buffered, &[]));
    call.send(&body(format!(r#"{{"prompt":"{prompt}","model":"alias"}}"#).as_bytes(), true));
    assert!(matches!(call.next().await, ProcessingAction::RequestHeaders(_)));
    let ProcessingAction::RequestBody(reply) = call.next().await else { panic!("another reply") };
    let header = reply.response.unwrap().header_mutation.unwrap().set_headers.remove(0).header.unwrap();
    assert_eq!(header.value(), (prompt.len() + r#"{"prompt":"","model":"alias-v2"}"#.len()).to_string().as_bytes());
}

#[tokio::test]
async fn clients_that_give_up_together_harm_nobody_else() {
    let bed = TestServer::start_serving().await;
    assert!(raw_frames::responds_after_resets(bed.grpc, 2000).await);
}

#[tokio::test]
async fn who_reads_slowly_stops_the_reading_at_the_other_end() {
    let bed = TestServer::start_serving().await;
    let mut client = GrpcClient::connect(bed.grpc).await;
    let mut slow = client.process().await;
    slow.send(&chat(DUPLEX, &[]));
    let piece = vec![b'x'; 64 * 1024];
    let pieces = 256;
    for _ in 0..pieces {
        slow.send(&body(&piece, false));
    }
    // Others go on meanwhile, on the same connection.
    for _ in 0..10 {
        start_request(&mut client).await;
    }
    assert!(slow.unsent() > pieces / 2, "{} of {pieces} pieces have left", pieces - slow.unsent());
    assert!(matches!(slow.next().await, ProcessingAction::RequestHeaders(_)));
    let mut passed = 0;
    while passed < pieces * piece.len() {
        let ProcessingAction::RequestBody(reply) = slow.next().await else { panic!("another reply") };
        let Some(crate::proto::Mutation::StreamedResponse(part)) =
            reply.response.unwrap().body_mutation.unwrap().mutation
        else {
            panic!()
        };
        passed += part.body.len();
    }
    assert_eq!(slow.unsent(), 0);
}

#[tokio::test]
async fn a_message_that_is_none_is_refused_with_words() {
    let bed = TestServer::start_serving().await;
    let mut client = GrpcClient::connect(bed.grpc).await;
    let mut call = client.process().await;
    call.send_bytes(b"\x12\xff\xff");
    let status = call.status().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("not a message of this method"), "{}", status.message());
    assert_eq!(client.call_unknown_method().await.code(), Code::Unimplemented);
}

#[tokio::test]
async fn before_it_has_rules_it_refuses_requests_instead_of_passing_them() {
    let bed = TestServer::start(ServerSettings::default()).await;
    let mut client = GrpcClient::connect(bed.grpc).await;
    assert_eq!(client.process().await.initial_status().code(), Code::Unavailable);
    bed.readiness.set_serving();
    start_request(&mut client).await;
}

#[tokio::test]
async fn health_says_serving_only_while_requests_should_come() {
    let mut bed =
        TestServer::start(ServerSettings { drain_delay: Duration::from_mins(1), ..ServerSettings::default() }).await;
    let mut on_both = [GrpcClient::connect(bed.grpc).await, GrpcClient::connect(bed.health).await];
    let services = ["", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor", "inference-extension"];
    let mut watch = on_both[1].watch("readiness").await;
    let mut unknown = on_both[1].watch("nobody").await;
    assert_eq!(unknown.next_status().await, Some(ServingStatus::ServiceUnknown));
    for (stage, readyz, expected) in [
        (ServerStage::Starting, 503, ServingStatus::NotServing),
        (ServerStage::Serving, 200, ServingStatus::Serving),
        (ServerStage::Draining, 503, ServingStatus::NotServing),
    ] {
        match stage {
            ServerStage::Starting => {}
            ServerStage::Serving => bed.readiness.set_serving(),
            ServerStage::Draining => bed.stop.cancel(),
        }
        assert_eq!(watch.next_status().await, Some(expected));
        for client in &mut on_both {
            for service in services {
                assert_eq!(client.check(service).await.unwrap(), expected, "{service} {stage:?}");
            }
            assert_eq!(client.check("liveness").await.unwrap(), ServingStatus::Serving);
            assert_eq!(client.check("nobody").await.unwrap_err().code(), Code::NotFound);
        }
        assert_eq!(bed.get("/readyz").await.0, readyz);
        assert_eq!(bed.get("/livez").await, (200, "ok\n".to_owned()));
    }
    assert_eq!(watch.next_status().await, None, "it holds up no drain");
    bed.readiness.set_serving();
    assert_eq!(bed.get("/readyz").await.0, 503, "there is no way back");
    bed.server.abort_all();
}

#[tokio::test]
async fn what_has_begun_ends_before_the_server_does() {
    let mut bed = TestServer::start_serving().await;
    let mut client = GrpcClient::connect(bed.grpc).await;
    let mut call = start_request(&mut client).await;
    bed.stop.cancel();
    while TcpStream::connect(bed.grpc).await.is_ok() {
        // Until nobody new is let in.
        tokio::task::yield_now().await;
    }
    assert_eq!(bed.get("/rules").await.0, 200, "the operator still asks");
    call.send(&response_headers("200", &[]));
    assert!(matches!(call.next().await, ProcessingAction::ResponseHeaders(_)));
    call.finish().await;
    bed.join().await;
}

#[tokio::test]
async fn new_requests_are_still_served_for_a_moment_after_the_end_was_announced() {
    let bed =
        TestServer::start(ServerSettings { drain_delay: Duration::from_mins(1), ..ServerSettings::default() }).await;
    bed.readiness.set_serving();
    bed.stop.cancel();
    let mut client = GrpcClient::connect(bed.grpc).await;
    while client.check("").await.unwrap() != ServingStatus::NotServing {}
    start_request(&mut client).await;
}

#[tokio::test]
async fn what_does_not_end_is_cut_off_in_the_end() {
    let short = ServerSettings {
        drain_delay: Duration::ZERO,
        drain_timeout: Duration::from_millis(50),
        ..ServerSettings::default()
    };
    let mut bed = TestServer::start(short).await;
    bed.readiness.set_serving();
    let mut client = GrpcClient::connect(bed.grpc).await;
    let mut call = client.process().await;
    call.send(&first_message(Some(DUPLEX.into()), &[(":path", "/v1/chat/completions")], false));
    assert!(matches!(call.next().await, ProcessingAction::RequestHeaders(_)));
    bed.stop.cancel();
    bed.join().await;
}

/// What `--routing-headers` means.
fn with_routing_headers(settings: &ServerSettings) -> ServerSettings {
    ServerSettings {
        rewrite: RewriteOptions { routing_headers: true, ..RewriteOptions::default() },
        drain_delay: Duration::ZERO,
        ..settings.clone()
    }
}

#[tokio::test]
async fn a_request_that_is_held_and_does_not_go_on_is_answered_in_the_end() {
    let short = ServerSettings { buffer_timeout: Duration::from_millis(50), ..ServerSettings::default() };
    for settings in [with_routing_headers(&short), ServerSettings { drain_delay: Duration::ZERO, ..short }] {
        let headers_wait = settings.rewrite.routing_headers;
        let bed = TestServer::start(settings).await;
        bed.readiness.set_serving();
        let mut client = GrpcClient::connect(bed.grpc).await;
        let mut call = client.process().await;
        call.send(&chat(DUPLEX, &[]));
        // A name that is cut is held in any case.
        call.send(&body(br#"{"model":"al"#, false));
        if !headers_wait {
            assert!(matches!(call.next().await, ProcessingAction::RequestHeaders(_)));
            assert!(matches!(call.next().await, ProcessingAction::RequestBody(_)));
        }
        let ProcessingAction::ImmediateResponse(reply) = call.next().await else { panic!("another reply") };
        assert_eq!(reply.status.unwrap().code, 408);
        let others = client.check("").await.unwrap();
        assert_eq!(others, ServingStatus::Serving);
    }
}

#[tokio::test]
async fn who_is_not_held_is_not_hurried() {
    let short = ServerSettings { buffer_timeout: Duration::from_millis(50), ..ServerSettings::default() };
    let bed = TestServer::start(with_routing_headers(&short)).await;
    bed.readiness.set_serving();
    let mut client = GrpcClient::connect(bed.grpc).await;
    let mut call = client.process().await;
    call.send(&chat(DUPLEX, &[]));
    call.send(&body(br#"{"model":"alias","prompt":""#, false));
    assert!(matches!(call.next().await, ProcessingAction::RequestHeaders(_)));
    assert!(matches!(call.next().await, ProcessingAction::RequestBody(_)));
    let nothing = tokio::time::timeout(Duration::from_millis(200), call.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
}

#[tokio::test]
async fn who_finds_no_room_waits_and_is_not_refused() {
    let most = 1 << 20;
    let how = RewriteOptions { mode: RewriteMode::Header, ..RewriteOptions::default() };
    let bed = TestServer::start(ServerSettings {
        rewrite: how,
        buffer_limit: most,
        buffer_budget: most,
        ..ServerSettings::default()
    })
    .await;
    bed.readiness.set_serving();
    let mut client = GrpcClient::connect(bed.grpc).await;
    let piece = vec![b'x'; 64 * 1024];
    let mut calls = Vec::new();
    for _ in 0..2 {
        let mut call = client.process().await;
        call.send(&chat(DUPLEX, &[]));
        call.send(&body(br#"{"prompt":""#, false));
        for _ in 0..8 {
            call.send(&body(&piece, false));
        }
        calls.push(call);
    }
    let [first, second] = &mut calls[..] else { panic!() };
    while first.unsent() > 0 && second.unsent() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (whole, stopped) = if first.unsent() == 0 { (first, second) } else { (second, first) };
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(stopped.unsent() > 3, "{} pieces are left", stopped.unsent());
    for call in [whole, stopped] {
        call.send(&body(br#"","model":"alias"}"#, true));
        let ProcessingAction::RequestHeaders(reply) = call.next().await else { panic!("another reply") };
        let set = reply.response.unwrap().header_mutation.unwrap().set_headers;
        assert_eq!(set.len(), 2);
    }
}

#[tokio::test]
async fn bodies_that_come_as_a_whole_wait_for_room_too() {
    let settings = ServerSettings { buffer_limit: 1 << 20, buffer_budget: 1 << 20, ..ServerSettings::default() };
    let bed = TestServer::start(settings).await;
    bed.readiness.set_serving();
    let mut client = GrpcClient::connect(bed.grpc).await;
    let prompt = "x".repeat(900 * 1024);
    let whole = body(format!(r#"{{"prompt":"{prompt}","model":"alias"}}"#).as_bytes(), true);
    let mut calls = Vec::new();
    for _ in 0..4 {
        let mut call = client.process().await;
        call.send(&chat(BodySendMode::Buffered, &[]));
        calls.push(call);
    }
    // One has begun, and has not come to its end.
    let bytes = prost::Message::encode_to_vec(&whole);
    let (begin, rest) = bytes.split_at(bytes.len() / 2);
    calls[0].send_start(bytes.len(), begin);
    assert!(matches!(calls[0].next().await, ProcessingAction::RequestHeaders(_)));
    while calls[0].unsent() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    for call in &mut calls[1..] {
        call.send(&whole);
        assert!(matches!(call.next().await, ProcessingAction::RequestHeaders(_)));
    }
    let early = tokio::time::timeout(Duration::from_millis(100), calls[1].next()).await;
    assert!(early.is_err(), "{early:?}");
    calls[0].send_rest(rest);
    for call in &mut calls {
        assert!(matches!(call.next().await, ProcessingAction::RequestBody(_)));
    }
}
