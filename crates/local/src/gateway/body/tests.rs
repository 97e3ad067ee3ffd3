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
fn a_body_that_says_it_is_too_long_is_not_read_at_all() {
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
fn what_all_requests_hold_is_limited_and_given_back() {
    let budget = BodyBudget::new(150);
    let body = || Full::new(Bytes::from(vec![0; LIMIT]));
    let held = run(buffer_body(body(), LIMIT, &budget)).unwrap();
    assert_eq!(run(buffer_body(body(), LIMIT, &budget)).unwrap_err(), GatewayRefusal::BufferExhausted);
    // A body is held until its last copy is gone.
    let chunks = BodyChunks::new([held.0], held.1);
    let copy = chunks.clone();
    drop(chunks);
    assert_eq!(run(buffer_body(body(), LIMIT, &budget)).unwrap_err(), GatewayRefusal::BufferExhausted);
    drop(copy);
    assert!(run(buffer_body(body(), LIMIT, &budget)).is_ok());
    assert_eq!(budget.used.load(Relaxed), 0);
}

#[test]
fn a_body_that_stops_coming_is_given_up() {
    let budget = BodyBudget::new(1000);
    let stopped = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>());
    assert_eq!(run(buffer_body(stopped, LIMIT, &budget)).unwrap_err(), GatewayRefusal::BodyTimeout { seconds: 60 });
}

proptest! {
    #[test]
    fn a_body_is_the_same_however_it_was_cut(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8),
    ) {
        let budget = BodyBudget::new(1000);
        let whole = chunks.concat();
        match run(buffer_body(frames(&chunks), LIMIT, &budget)) {
            Ok((body, hold)) => {
                prop_assert!(whole.len() <= LIMIT);
                prop_assert_eq!(&body[..], &whole[..]);
                prop_assert_eq!(budget.used.load(Relaxed), whole.len());
                let sent = BodyChunks::new([body.slice(..body.len() / 2), body.slice(body.len() / 2..)], hold);
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
