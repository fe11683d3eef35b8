//! What clients ask of the protocol besides objects: streamed lists, discovery, trial runs.

use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use http::Request;
use kube::Client;
use serde_json::{Value, json};

use crate::companion::{Companion, code, config_map, delete, get, items, merge, post, revision};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// So many events of a watch.
async fn events(client: &Client, query: &str, n: usize) -> Vec<Value> {
    let path = format!("{MAPS}?watch=1&{query}");
    let lines = client.request_stream(Request::get(path).body(Vec::new()).unwrap()).await.unwrap();
    let events = lines.lines().take(n).map_ok(|line| serde_json::from_str(&line).unwrap());
    events.try_collect().await.unwrap()
}

fn shown(events: &[Value]) -> Vec<(&str, &str)> {
    let name = |i: usize| events[i]["object"]["metadata"]["name"].as_str().unwrap_or("");
    let kind = |i: usize| events[i]["type"].as_str().unwrap();
    (0..events.len()).map(|i| (kind(i), name(i))).collect()
}

async fn make(client: &Client, names: &[&str]) {
    for name in names {
        let mut map = config_map(name);
        map["metadata"]["labels"] = json!({"color": if *name == "b" { "blue" } else { "red" }});
        post(client, MAPS, &map).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_streamed_and_ends_with_a_bookmark_that_says_so() {
    let companion = Companion::start(&["--no-controllers"]).await;
    let client = companion.client().await;
    make(&client, &["a", "b", "c"]).await;
    let last = revision(&get(&client, &format!("{MAPS}/c")).await.unwrap());
    let streamed = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                    &allowWatchBookmarks=true&labelSelector=color%3Dred";
    let writer = client.clone();
    let later = tokio::spawn(async move {
        // It goes on where the list ended.
        make(&writer, &["d"]).await;
    });
    let seen = events(&client, streamed, 4).await;
    later.await.unwrap();
    let (mut list, mut rest): (Vec<&Value>, Vec<&Value>) = (Vec::new(), Vec::new());
    let end = seen.iter().position(|event| event["type"] == "BOOKMARK").unwrap();
    list.extend(&seen[..end]);
    rest.extend(&seen[end + 1..]);
    // The one made meanwhile came with the list or after it.
    assert_eq!(list.len() + rest.len(), 3, "{seen:?}");
    let bookmark = &seen[end]["object"];
    assert_eq!(bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert!(revision(bookmark) >= last);
    let names = shown(&seen);
    assert_eq!(names[..2], [("ADDED", "a"), ("ADDED", "c")]);
    assert!(rest.iter().all(|event| event["object"]["metadata"]["name"] == "d"));

    let without = "sendInitialEvents=true&allowWatchBookmarks=true";
    let path = format!("{MAPS}?watch=1&{without}");
    assert_eq!(code(get(&client, &path).await), 422, "resourceVersionMatch is needed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_a_selector_no_longer_matches_is_gone_for_its_watchers() {
    let companion = Companion::start(&["--no-controllers"]).await;
    let client = companion.client().await;
    let from = revision(&get(&client, MAPS).await.unwrap());
    make(&client, &["a", "b"]).await;
    for color in ["blue", "red"] {
        let label = json!({"metadata": {"labels": {"color": color}}});
        merge(&client, &format!("{MAPS}/a"), &label).await.unwrap();
    }
    delete(&client, &format!("{MAPS}/a"), &json!({})).await.unwrap();
    let query = format!("resourceVersion={from}&labelSelector=color%3Dred");
    let seen = events(&client, &query, 4).await;
    assert_eq!(shown(&seen), [("ADDED", "a"), ("DELETED", "a"), ("ADDED", "a"), ("DELETED", "a")]);
    let revisions: Vec<u64> = seen.iter().map(|event| revision(&event["object"])).collect();
    assert!(revisions.is_sorted_by(|a, b| a < b), "{revisions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_is_deleted_as_far_as_it_is_selected() {
    let companion = Companion::start(&["--no-controllers"]).await;
    let client = companion.client().await;
    make(&client, &["a", "b", "c"]).await;
    let red = format!("{MAPS}?labelSelector=color%3Dred");
    let trial = format!("{red}&dryRun=All");
    assert_eq!(
        delete(&client, &trial, &json!({})).await.unwrap()["items"].as_array().unwrap().len(),
        2
    );
    assert_eq!(items(&client, MAPS).await.len(), 3, "only as if");
    let deleted = delete(&client, &red, &json!({})).await.unwrap();
    assert_eq!(deleted["kind"], "ConfigMapList");
    assert_eq!(deleted["items"].as_array().unwrap().len(), 2);
    let left = items(&client, MAPS).await;
    assert_eq!(left[0]["metadata"]["name"], "b");
    assert_eq!(left.len(), 1);
    // Of all namespaces at once, nothing can be deleted.
    assert_eq!(code(delete(&client, "/api/v1/configmaps", &json!({})).await), 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_run_answers_as_if_and_writes_nothing() {
    let companion = Companion::start(&["--no-controllers"]).await;
    let client = companion.client().await;
    let services = "/api/v1/namespaces/default/services";
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"},
        "spec": {"ports": [{"port": 80}]}});
    let made = post(&client, &format!("{services}?dryRun=All"), &service).await.unwrap();
    assert!(made["spec"]["clusterIP"].is_string());
    assert_eq!(code(get(&client, &format!("{services}/x")).await), 404);
    assert_eq!(code(post(&client, &format!("{services}?dryRun=Some"), &service).await), 400);
    // Its address was not taken.
    let addresses = items(&client, "/apis/networking.k8s.io/v1/ipaddresses").await;
    assert_eq!(addresses.len(), 1);
    make(&client, &["a"]).await;
    let change = json!({"data": {"a": "c"}});
    let changed = merge(&client, &format!("{MAPS}/a?dryRun=All"), &change).await.unwrap();
    assert_eq!(changed["data"]["a"], "c");
    assert_eq!(get(&client, &format!("{MAPS}/a")).await.unwrap()["data"]["a"], "b");
    delete(&client, &format!("{MAPS}/a?dryRun=All"), &json!({})).await.unwrap();
    get(&client, &format!("{MAPS}/a")).await.unwrap();
}

/// A request with an Accept header: the answer's content type and the answer.
async fn accepting(companion: &Companion, path: &str, accept: &str) -> (String, Value) {
    let address = companion.address();
    let (path, accept) = (path.to_owned(), accept.to_owned());
    let answer = tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: {accept}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let lower = head.to_ascii_lowercase();
    let line = lower.lines().find(|line| line.starts_with("content-type:")).unwrap();
    (line.to_owned(), serde_json::from_str(body).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_is_answered_in_both_forms_and_they_say_the_same() {
    let companion = Companion::start(&["--no-controllers"]).await;
    let client = companion.client().await;
    for version in ["v2", "v2beta1"] {
        let form =
            format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        let (content, groups) =
            accepting(&companion, "/apis", &format!("{form},application/json")).await;
        assert!(content.contains(&format!("v={version}")), "{content}");
        assert_eq!(groups["kind"], "APIGroupDiscoveryList");
        for group in groups["items"].as_array().unwrap() {
            let name = group["metadata"]["name"].as_str().unwrap();
            let plain = get(&client, &format!("/apis/{name}/v1")).await.unwrap();
            let version = &group["versions"][0];
            let mut aggregated: Vec<String> = Vec::new();
            for resource in version["resources"].as_array().unwrap() {
                let resource_name = resource["resource"].as_str().unwrap();
                aggregated.push(resource_name.to_owned());
                for sub in resource["subresources"].as_array().into_iter().flatten() {
                    aggregated
                        .push(format!("{resource_name}/{}", sub["subresource"].as_str().unwrap()));
                }
            }
            let mut listed: Vec<String> = plain["resources"]
                .as_array()
                .unwrap()
                .iter()
                .map(|resource| resource["name"].as_str().unwrap().to_owned())
                .collect();
            aggregated.sort();
            listed.sort();
            assert_eq!(aggregated, listed, "{name}");
        }
    }
    let (_, plain) = accepting(&companion, "/apis", "application/json").await;
    assert_eq!(plain["kind"], "APIGroupList");
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_alone_is_listed_got_and_watched() {
    const FORM: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    const ONE: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let companion = Companion::start(&["--no-controllers"]).await;
    let client = companion.client().await;
    make(&client, &["a", "b"]).await;
    let whole = get(&client, &format!("{MAPS}/a")).await.unwrap();
    let (_, one) = accepting(&companion, &format!("{MAPS}/a"), ONE).await;
    let expected = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": whole["metadata"]});
    assert_eq!(one, expected);
    let (_, list) = accepting(&companion, MAPS, FORM).await;
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"][0], expected);
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
    let mut watch = Request::get(format!("{MAPS}?watch=1&resourceVersion=0"));
    watch = watch.header("accept", ONE);
    let lines = client.request_stream(watch.body(Vec::new()).unwrap()).await.unwrap();
    let first = lines.lines().next().await.unwrap().unwrap();
    let first: Value = serde_json::from_str(&first).unwrap();
    assert_eq!(first["object"], expected);
}
