//! Channels and SPDY as a client of WebSocket sees them.

use super::*;

async fn client(io: tokio::io::DuplexStream) -> Socket<tokio::io::DuplexStream> {
    WebSocketStream::from_raw_socket(io, Role::Client, None).await
}

fn binary(bytes: &[u8]) -> Message {
    Message::Binary(Bytes::copy_from_slice(bytes))
}

#[test]
fn a_key_is_answered_as_the_rfc_has_it() {
    let mut headers = HeaderMap::new();
    headers.insert("sec-websocket-key", HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
    assert_eq!(accept_key(&headers), None, "without a version");
    headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
    // RFC 6455 §1.3.
    assert_eq!(accept_key(&headers).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

#[tokio::test]
async fn a_channel_is_a_stream_and_how_it_ended_is_the_last_word() {
    let (ours, theirs) = duplex(1 << 16);
    // Answers what it reads until nothing more comes.
    let serve = |mut streams: mpsc::Receiver<Stream>| async move {
        let mut all = HashMap::new();
        for _ in 0..3 {
            let stream = streams.recv().await.unwrap();
            all.insert(stream.headers[0].1.clone(), stream);
        }
        let mut stdin = all.remove("stdin").unwrap();
        let out = all.remove("stdout").unwrap();
        while let Some(bytes) = stdin.incoming.recv().await {
            out.outgoing.send(bytes).await.unwrap();
        }
        let error = all.remove("error").unwrap();
        error.outgoing.send(Bytes::from_static(b"{}")).await.unwrap();
        error.outgoing.close().await;
        assert!(streams.recv().await.is_none(), "until the client has gone");
    };
    let talk = async {
        let mut socket = client(theirs).await;
        assert_eq!(socket.next().await.unwrap().unwrap(), binary(&[3]));
        socket.send(binary(b"\0abc")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), binary(b"\x01abc"));
        // A channel that there is not, and one that is closed.
        socket.send(binary(b"\x09?")).await.unwrap();
        socket.send(binary(&[CLOSE, 0])).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), binary(b"\x03{}"));
        assert_eq!(socket.next().await.unwrap().unwrap(), normal_end());
    };
    let names = ["stdin", "stdout", "error"];
    let (carried, ()) = tokio::join!(carry_channels(ours, &names, serve), talk);
    carried.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_ends_the_session() {
    let (ours, theirs) = duplex(1 << 16);
    let serve = |mut streams: mpsc::Receiver<Stream>| async move {
        let mut stdin = streams.recv().await.unwrap();
        assert_eq!(stdin.incoming.recv().await, None);
        assert!(streams.recv().await.is_none());
    };
    let talk = async { drop(client(theirs).await) };
    tokio::join!(carry_channels(ours, &["stdin"], serve), talk).0.unwrap_err();
}

#[tokio::test]
async fn spdy_goes_through_a_websocket() {
    let (ours, theirs) = duplex(1 << 16);
    let serve = |mut streams: mpsc::Receiver<Stream>| async move {
        assert!(streams.recv().await.is_none());
    };
    let talk = async {
        let mut socket = client(theirs).await;
        // A ping of SPDY's own, in two messages, is answered with itself.
        let ping = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
        socket.send(binary(&ping[..5])).await.unwrap();
        socket.send(binary(&ping[5..])).await.unwrap();
        let mut answer = Vec::new();
        while answer.len() < ping.len() {
            answer.extend_from_slice(&socket.next().await.unwrap().unwrap().into_data());
        }
        assert_eq!(answer, ping);
        socket.close(None).await.unwrap();
    };
    tokio::join!(carry_spdy(ours, serve), talk).0.unwrap();
}
