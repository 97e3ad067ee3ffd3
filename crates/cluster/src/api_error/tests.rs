use super::*;

const WRITE: ApiRequest<'_> =
    ApiRequest { verb: "update", resource: "inferencemodelrewrites.llm-d.ai", namespace: Some("prod") };

fn answered(code: u16, reason: &str, message: &str) -> ApiError {
    let status = Status::failure(message, reason).with_code(code);
    ApiError::of(&kube::Error::Api(status.boxed()), WRITE)
}

#[test]
fn each_answer_has_its_class() {
    for (code, reason, class) in [
        (409, "Conflict", "Conflict"),
        (409, "AlreadyExists", "Conflict"),
        (400, "BadRequest", "Refused"),
        (422, "Invalid", "Refused"),
        (413, "RequestEntityTooLarge", "Refused"),
        (404, "NotFound", "NotFound"),
        (403, "Forbidden", "Forbidden"),
        (401, "Unauthorized", "Unavailable"),
        (429, "TooManyRequests", "Unavailable"),
        (503, "ServiceUnavailable", "Unavailable"),
        (410, "Expired", "Unavailable"),
        (500, "InternalError", "Unknown"),
        (504, "Timeout", "Unknown"),
    ] {
        assert_eq!(answered(code, reason, "said").reason(), class, "{code} {reason}");
    }
}

#[test]
fn a_missing_permission_is_said_with_its_verb_its_resource_and_what_to_apply() {
    let error = answered(403, "Forbidden", "user \"x\" cannot").to_string();
    assert!(
        error.starts_with(
            "it is forbidden to update inferencemodelrewrites.llm-d.ai in namespace prod: apply the Role or ClusterRole"
        ),
        "{error}"
    );
}

#[test]
fn a_namespace_that_is_being_deleted_is_not_taken_for_a_missing_permission() {
    let error =
        answered(403, "Forbidden", "unable to create new content in namespace prod because it is being terminated");
    assert_eq!(error.reason(), "Refused");
}

#[tokio::test]
async fn a_server_that_refuses_the_connection_has_received_nothing() {
    let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
    let error = client.apiserver_version().await.unwrap_err();
    let error = ApiError::of(&error, WRITE);
    assert_eq!(error.reason(), "Unavailable");
    assert!(error.to_string().contains("the API server cannot be reached: "), "{error}");
}

#[tokio::test]
async fn a_connection_that_breaks_after_sending_leaves_it_open_what_was_written() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = kube::Client::try_from(kube::Config::new(format!("http://{address}").parse().unwrap())).unwrap();
    let cut = async {
        let (stream, _) = listener.accept().await.unwrap();
        stream.readable().await.unwrap();
        drop(stream);
    };
    let (answer, ()) = tokio::join!(client.apiserver_version(), cut);
    assert_eq!(ApiError::of(&answer.unwrap_err(), WRITE).reason(), "Unknown");
}
