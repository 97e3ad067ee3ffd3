use super::*;
use http_body_util::{BodyExt, Full, StreamBody};
use proptest::prelude::*;

const LIMIT: usize = 100;

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(future)
}

fn frames(chunks: &[Vec<u8>]) -> impl Body<Data = Bytes, Error = Infallible> + Unpin + use<> {
    let frames: Vec<_> = chunks.iter().map(|chunk| Ok(Frame::data(Bytes::from(chunk.clone())))).collect();
    StreamBody::new(futures_util::stream::iter(frames))
}

#[test]
fn body_with_too_large_content_length_is_not_read() {
    let budget = BodyBudget::new(1000);
    let long = Full::new(Bytes::from(vec![0; LIMIT + 1]));
    assert_eq!(
        run(buffer_body(long, LIMIT, &budget)).unwrap_err(),
        router::RequestRefusal::BodyTooLarge { limit: LIMIT }.into()
    );
    let right = Full::new(Bytes::from(vec![0; LIMIT]));
    assert_eq!(run(buffer_body(right, LIMIT, &budget)).unwrap().0.len(), LIMIT);
}

#[test]
fn buffered_bytes_of_all_requests_are_limited() {
    let budget = BodyBudget::new(150);
    let body = || Full::new(Bytes::from(vec![0; LIMIT]));
    let buffered = run(buffer_body(body(), LIMIT, &budget)).unwrap();
    assert_eq!(run(buffer_body(body(), LIMIT, &budget)).unwrap_err(), GatewayRefusal::BufferExhausted);
    // A body counts against the budget until its last clone is dropped.
    let chunks = BodyChunks::new([buffered.0], buffered.1);
    let copy = chunks.clone();
    drop(chunks);
    assert_eq!(run(buffer_body(body(), LIMIT, &budget)).unwrap_err(), GatewayRefusal::BufferExhausted);
    drop(copy);
    assert!(run(buffer_body(body(), LIMIT, &budget)).is_ok());
    assert_eq!(budget.used.load(Relaxed), 0);
}

#[test]
fn stalled_body_times_out() {
    let budget = BodyBudget::new(1000);
    let stopped = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>());
    assert_eq!(run(buffer_body(stopped, LIMIT, &budget)).unwrap_err(), GatewayRefusal::BodyTimeout { seconds: 60 });
}

proptest! {
    #[test]
    fn buffered_body_does_not_depend_on_its_frames(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8),
    ) {
        let budget = BodyBudget::new(1000);
        let whole = chunks.concat();
        match run(buffer_body(frames(&chunks), LIMIT, &budget)) {
            Ok((body, permit)) => {
                prop_assert!(whole.len() <= LIMIT);
                prop_assert_eq!(&body[..], &whole[..]);
                prop_assert_eq!(budget.used.load(Relaxed), whole.len());
                let sent = BodyChunks::new([body.slice(..body.len() / 2), body.slice(body.len() / 2..)], permit);
                prop_assert_eq!(sent.size_hint().exact(), Some(whole.len() as u64));
                let sent = run(sent.collect()).unwrap().to_bytes();
                prop_assert_eq!(&sent[..], &whole[..]);
            }
            Err(refusal) => {
                prop_assert!(whole.len() > LIMIT);
                prop_assert_eq!(refusal, router::RequestRefusal::BodyTooLarge { limit: LIMIT }.into());
            }
        }
        prop_assert_eq!(budget.used.load(Relaxed), 0);
    }
}
