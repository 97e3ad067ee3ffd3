use super::*;

const WRITE: ApiRequest<'_> =
    ApiRequest { verb: "update", resource: "inferencemodelrewrites.llm-d.ai", namespace: Some("prod") };

fn api_error(code: u16, reason: &str, message: &str) -> ApiError {
    let status = Status::failure(message, reason).with_code(code);
    ApiError::of(&kube::Error::Api(status.boxed()), WRITE)
}

#[test]
fn every_status_code_has_a_class() {
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
        assert_eq!(api_error(code, reason, "said").reason(), class, "{code} {reason}");
    }
}

#[test]
fn missing_permission_names_verb_resource_and_role() {
    let error = api_error(403, "Forbidden", "user \"x\" cannot").to_string();
    assert!(
        error.starts_with(
            "it is forbidden to update inferencemodelrewrites.llm-d.ai in namespace prod: apply the Role or ClusterRole"
        ),
        "{error}"
    );
}

#[test]
fn terminating_namespace_is_not_a_missing_permission() {
    let error =
        api_error(403, "Forbidden", "unable to create new content in namespace prod because it is being terminated");
    assert_eq!(error.reason(), "Refused");
}

#[tokio::test]
async fn refused_connection_is_unavailable() {
    let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
    let error = client.apiserver_version().await.unwrap_err();
    let error = ApiError::of(&error, WRITE);
    assert_eq!(error.reason(), "Unavailable");
    assert!(error.to_string().contains("the API server cannot be reached: "), "{error}");
}

#[tokio::test]
async fn connection_broken_after_sending_is_unknown() {
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
