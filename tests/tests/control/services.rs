//! Services: where their addresses come from, and what their slices say of each pod.

use kube::Client;
use serde_json::{Value, json};

use crate::companion::{Companion, code, delete, eventually, get, items, merge, post, put};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints";
const PODS: &str = "/api/v1/namespaces/default/pods";
const CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";

fn service(name: &str, spec: &Value) -> Value {
    let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}]}});
    service["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    service
}

async fn make(client: &Client, name: &str, spec: &Value) -> kube::Result<Value> {
    post(client, SERVICES, &service(name, spec)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_full_is_followed_by_the_next_and_what_is_given_back_is_given_again() {
    let range = ["--no-controllers", "--service-cluster-ip-range", "10.96.0.0/28,fd00:10:96::/112"];
    let companion = Companion::start(&range).await;
    let client = companion.client().await;
    let mut made = Vec::new();
    let refused = loop {
        match make(&client, &format!("s{}", made.len()), &json!({})).await {
            Ok(service) => made.push(service["spec"]["clusterIP"].clone()),
            Err(error) => break error,
        }
    };
    // Of sixteen, the network's own, its broadcast and default/kubernetes are not to be had.
    assert_eq!(made.len(), 13);
    assert!(refused.to_string().contains("range is full"), "{refused}");
    assert_eq!(code::<Value>(Err(refused)), 422);

    delete(&client, &format!("{SERVICES}/s5"), &json!({})).await.unwrap();
    let again = make(&client, "again", &json!({})).await.unwrap();
    assert_eq!(again["spec"]["clusterIP"], made[5]);

    let more = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "more"}, "spec": {"cidrs": ["10.97.0.0/28"]}});
    let cidr = post(&client, CIDRS, &more).await.unwrap();
    assert_eq!(cidr["status"]["conditions"][0]["type"], "Ready");
    let next = make(&client, "next", &json!({})).await.unwrap();
    let ip = next["spec"]["clusterIP"].as_str().unwrap();
    assert!(ip.starts_with("10.97.0."), "{ip}");

    // Both families, an address by name, and the same once more.
    let dual = make(&client, "dual", &json!({"ipFamilyPolicy": "RequireDualStack"})).await.unwrap();
    assert_eq!(dual["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    let ips = dual["spec"]["clusterIPs"].as_array().unwrap();
    assert!(ips[1].as_str().unwrap().starts_with("fd00:10:96::"), "{ips:?}");
    let named = json!({"clusterIP": "10.97.0.9"});
    assert_eq!(make(&client, "named", &named).await.unwrap()["spec"]["clusterIP"], "10.97.0.9");
    assert_eq!(code(make(&client, "twice", &named).await), 422);

    // A range that Services have addresses of stays until they are gone.
    delete(&client, &format!("{CIDRS}/more"), &json!({})).await.unwrap();
    let going = get(&client, &format!("{CIDRS}/more")).await.unwrap();
    assert!(going["metadata"]["deletionTimestamp"].is_string(), "{going}");
    assert_eq!(code(make(&client, "late", &json!({})).await), 422);
    for name in ["next", "dual", "named"] {
        delete(&client, &format!("{SERVICES}/{name}"), &json!({})).await.unwrap();
    }
    assert_eq!(code(get(&client, &format!("{CIDRS}/more")).await), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn node_ports_and_balancer_addresses_are_taken_once_and_given_back() {
    let flags = [
        "--no-controllers",
        "--service-node-port-range",
        "31000-31002",
        "--load-balancer-pool",
        "192.0.2.8/31",
    ];
    let companion = Companion::start(&flags).await;
    let client = companion.client().await;
    let port = |service: &Value| service["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    let asked = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 31001}]});
    assert_eq!(port(&make(&client, "a", &asked).await.unwrap()), 31001);
    assert_eq!(code(make(&client, "b", &asked).await), 422);
    let outside = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 32000}]});
    assert_eq!(code(make(&client, "b", &outside).await), 422);
    let any = json!({"type": "NodePort"});
    let mut ports = vec![
        port(&make(&client, "b", &any).await.unwrap()),
        port(&make(&client, "c", &any).await.unwrap()),
    ];
    ports.sort_unstable();
    assert_eq!(ports, [31000, 31002]);
    assert_eq!(code(make(&client, "d", &any).await), 422);

    let balanced = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false});
    let ip = |service: &Value| service["status"]["loadBalancer"]["ingress"][0]["ip"].clone();
    let one = ip(&make(&client, "e", &balanced).await.unwrap());
    let two = ip(&make(&client, "f", &balanced).await.unwrap());
    let mut both = [one.clone(), two].map(|ip| ip.as_str().unwrap().to_owned());
    both.sort();
    assert_eq!(both, ["192.0.2.8", "192.0.2.9"]);
    assert_eq!(ip(&make(&client, "g", &balanced).await.unwrap()), Value::Null);
    delete(&client, &format!("{SERVICES}/e"), &json!({})).await.unwrap();
    assert_eq!(ip(&make(&client, "h", &balanced).await.unwrap()), one);
}

/// The slices of the Service `x`, once they are so.
async fn slices(client: &Client, what: &str, check: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    const PATH: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices\
                        ?labelSelector=kubernetes.io%2Fservice-name%3Dx";
    eventually(what, || async {
        let slices = items(client, PATH).await;
        check(&slices).then_some(slices)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_written_by_hand_are_mirrored_as_long_as_they_are_there() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    make(&client, "x", &json!({})).await.unwrap();
    let mut by_hand = json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "x"},
        "subsets": [{
            "addresses": [{"ip": "10.1.1.1", "hostname": "one"}],
            "notReadyAddresses": [{"ip": "10.1.1.2"}],
            "ports": [{"name": "p", "port": 8080}],
        }],
    });
    post(&client, ENDPOINTS, &by_hand).await.unwrap();
    let made = slices(&client, "a slice", |slices| slices.len() == 1).await;
    let labels = &made[0]["metadata"]["labels"];
    let manager = &labels["endpointslice.kubernetes.io/managed-by"];
    assert_eq!(manager, "endpointslicemirroring-controller.k8s.io");
    let endpoints = made[0]["endpoints"].as_array().unwrap();
    let ready = |ip: &str| {
        let mut found = endpoints.iter().filter(|one| one["addresses"][0] == ip);
        found.next().unwrap()["conditions"]["ready"].clone()
    };
    assert_eq!((ready("10.1.1.1"), ready("10.1.1.2")), (json!(true), json!(false)));
    assert_eq!(made[0]["ports"][0]["port"], 8080);

    by_hand["subsets"][0]["ports"][0]["port"] = json!(9090);
    put(&client, &format!("{ENDPOINTS}/x"), &by_hand).await.unwrap();
    slices(&client, "the other port", |slices| {
        slices.len() == 1 && slices[0]["ports"][0]["port"] == 9090
    })
    .await;
    // A selector makes them somebody else's, and without Endpoints there is nothing to mirror.
    merge(&client, &format!("{SERVICES}/x"), &json!({"spec": {"selector": {"app": "x"}}}))
        .await
        .unwrap();
    slices(&client, "mirrored no more", |slices| {
        slices.iter().all(|one| {
            one["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"]
                == "endpointslice-controller.k8s.io"
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_mirrored_goes_with_its_endpoints() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    make(&client, "x", &json!({})).await.unwrap();
    let by_hand = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "x"},
        "subsets": [{"addresses": [{"ip": "10.1.1.1"}], "ports": [{"port": 8080}]}]});
    post(&client, ENDPOINTS, &by_hand).await.unwrap();
    slices(&client, "a slice", |slices| slices.len() == 1).await;
    delete(&client, &format!("{ENDPOINTS}/x"), &json!({})).await.unwrap();
    slices(&client, "no slice", <[Value]>::is_empty).await;
}

/// A pod on a node, with an address and a readiness.
async fn put_pod(client: &Client, name: &str, ip: &str, spec: &Value, ready: bool) {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "x"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "a:1"}]},
    });
    pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    post(client, PODS, &pod).await.unwrap();
    let ready = if ready { "True" } else { "False" };
    let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": ready}]}});
    merge(client, &format!("{PODS}/{name}/status"), &status).await.unwrap();
}

async fn put_node(client: &Client, name: &str, zone: &str) {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name,
        "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    post(client, "/api/v1/nodes", &node).await.unwrap();
}

fn endpoint<'a>(slices: &'a [Value], ip: &str) -> Option<&'a Value> {
    let all = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    all.into_iter().find(|one| one["addresses"][0] == ip)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_says_how_its_pod_is_where_and_for_whom() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    put_node(&client, "n1", "a").await;
    let spec = json!({"selector": {"app": "x"}, "trafficDistribution": "PreferSameZone"});
    make(&client, "x", &spec).await.unwrap();
    put_pod(&client, "one", "10.1.1.1", &json!({"hostname": "h", "subdomain": "x"}), true).await;
    put_pod(&client, "two", "10.1.1.2", &json!({}), false).await;
    let made = slices(&client, "both", |slices| {
        endpoint(slices, "10.1.1.1").is_some_and(|one| one["conditions"]["ready"] == true)
            && endpoint(slices, "10.1.1.2").is_some()
    })
    .await;
    let one = endpoint(&made, "10.1.1.1").unwrap();
    assert_eq!(
        (&one["hostname"], &one["nodeName"], &one["zone"]),
        (&json!("h"), &json!("n1"), &json!("a"))
    );
    assert_eq!(one["hints"], json!({"forZones": [{"name": "a"}]}));
    assert_eq!(one["targetRef"]["name"], "one");
    let two = endpoint(&made, "10.1.1.2").unwrap();
    let conditions = json!({"ready": false, "serving": false, "terminating": false});
    assert_eq!((&two["conditions"], &two["hints"]), (&conditions, &Value::Null));

    let change = |spec: Value| {
        let client = client.clone();
        async move {
            merge(&client, &format!("{SERVICES}/x"), &json!({"spec": spec})).await.unwrap();
        }
    };
    change(json!({"trafficDistribution": "PreferSameNode"})).await;
    slices(&client, "a hint for the node", |slices| {
        endpoint(slices, "10.1.1.1").is_some_and(|one| {
            one["hints"] == json!({"forZones": [{"name": "a"}], "forNodes": [{"name": "n1"}]})
        })
    })
    .await;
    change(json!({"trafficDistribution": null})).await;
    slices(&client, "no hints", |slices| {
        endpoint(slices, "10.1.1.1").is_some_and(|one| one["hints"].is_null())
    })
    .await;

    // Given time, it serves on, for those who would otherwise have nobody.
    delete(&client, &format!("{PODS}/one"), &json!({"gracePeriodSeconds": 30})).await.unwrap();
    slices(&client, "terminating", |slices| {
        endpoint(slices, "10.1.1.1").is_some_and(|one| {
            one["conditions"] == json!({"ready": false, "serving": true, "terminating": true})
        })
    })
    .await;
    change(json!({"publishNotReadyAddresses": true})).await;
    slices(&client, "ready whatever they are", |slices| {
        ["10.1.1.1", "10.1.1.2"]
            .iter()
            .all(|ip| endpoint(slices, ip).is_some_and(|one| one["conditions"]["ready"] == true))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_by_name_is_what_each_pod_calls_so() {
    let companion = Companion::start(&[]).await;
    let client = companion.client().await;
    put_node(&client, "n1", "a").await;
    let ports = json!([{"name": "web", "port": 80, "targetPort": "http"}]);
    make(&client, "x", &json!({"selector": {"app": "x"}, "ports": ports})).await.unwrap();
    for (name, ip, port) in [("one", "10.1.1.1", 8080), ("two", "10.1.1.2", 9090)] {
        let containers = json!([{"name": "c", "image": "a:1",
            "ports": [{"name": "http", "containerPort": port}]}]);
        put_pod(&client, name, ip, &json!({"containers": containers}), true).await;
    }
    let made = slices(&client, "a slice for each port", |slices| {
        slices.len() == 2
            && slices
                .iter()
                .all(|one| one["endpoints"].as_array().is_some_and(|all| all.len() == 1))
    })
    .await;
    let mut found: Vec<(String, u64)> = made
        .iter()
        .map(|slice| {
            let ip = slice["endpoints"][0]["addresses"][0].as_str().unwrap().to_owned();
            (ip, slice["ports"][0]["port"].as_u64().unwrap())
        })
        .collect();
    found.sort();
    assert_eq!(found, [("10.1.1.1".to_owned(), 8080), ("10.1.1.2".to_owned(), 9090)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leaks_is_repaired_and_the_servers_own_service_comes_back() {
    const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
    let mut companion = Companion::start(&["--no-controllers"]).await;
    let client = companion.client().await;
    let leaked = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {"name": "10.96.0.77", "labels": {
            "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
        }},
        "spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "gone"}},
    });
    post(&client, ADDRESSES, &leaked).await.unwrap();
    let named = json!({"clusterIP": "10.96.0.77"});
    assert_eq!(code(make(&client, "x", &named).await), 422);
    companion.kill();
    companion.restart().await;
    make(&client, "x", &named).await.unwrap();

    let own = format!("{SERVICES}/kubernetes");
    let before = get(&client, &own).await.unwrap();
    delete(&client, &own, &json!({})).await.unwrap();
    let after = eventually("it is back", || async { get(&client, &own).await.ok() }).await;
    assert_ne!(before["metadata"]["uid"], after["metadata"]["uid"]);
    assert_eq!(before["spec"]["clusterIP"], after["spec"]["clusterIP"]);
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let slice = get(&client, path).await.unwrap();
    let address = companion.address();
    let (ip, port) = address.split_once(':').unwrap();
    assert_eq!(slice["endpoints"][0]["addresses"][0], ip);
    assert_eq!(slice["ports"][0]["port"], port.parse::<u16>().unwrap());
}
