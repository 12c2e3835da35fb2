//! What ten thousand idle sockets cost the process that holds them, and how soon all of them hear of a
//! change.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{WebSocketStream, client_async_with_config, tungstenite::client::IntoClientRequest};

use crate::{Ground, service::Service};

const SOCKETS: usize = 10_000;

pub async fn idle(ground: &Ground) -> anyhow::Result<()> {
    drop(ground.app("sockets").await?);
    let many = [("REALTIME_CONNECTIONS_PER_USER", "1000000")];
    let service = Service::start(ground, "sockets", &[], &many).await?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let base = format!("http://{}/api/v1", service.address);
    let account = json!({"email": "bench@example.com", "password": "Correct-Horse-7-Battery",
        "organization_name": "Bench"});
    let account: Value = http
        .post(format!("{base}/auth/register"))
        .json(&account)
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    let token = account["access_token"].as_str().unwrap_or_default();
    let organization = account["organization"]["id"].as_str().unwrap_or_default();
    let before = service.memory();
    let opening = Instant::now();
    let mut sockets = Vec::with_capacity(SOCKETS);
    while sockets.len() < SOCKETS {
        let some = (0..50).map(|_| open(service.address, organization, token));
        for socket in join_all(some).await {
            sockets.push(socket?);
        }
    }
    let opened = opening.elapsed();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let held = service.memory();
    let started = Instant::now();
    let changed = http
        .post(format!("{base}/projects"))
        .bearer_auth(token)
        .header("x-organization-id", organization)
        .json(&json!({"name": "Told to all"}))
        .send();
    let hearing = join_all(sockets.iter_mut().map(|socket| async {
        while let Some(Ok(message)) = socket.next().await {
            if message.to_text().is_ok_and(|text| text.contains("project.created")) {
                return true;
            }
        }
        false
    }));
    let (answer, heard) = tokio::join!(changed, hearing);
    answer?.error_for_status()?;
    let all = heard.iter().filter(|heard| **heard).count();
    println!("{:<44} {:>10}", "sockets", SOCKETS);
    println!("{:<44} {:>10.1} s", "opened in", opened.as_secs_f64());
    println!("{:<44} {:>10.0} MB", "memory before", before);
    println!("{:<44} {:>10.0} MB", "memory with all of them idle", held);
    println!("{:<44} {:>10.1} kB", "for each", (held - before) * 1024.0 / SOCKETS as f64);
    println!("{:<44} {:>10.0} MB", "memory after one change told to all", service.memory());
    println!("{:<44} {:>10.0} ms, {all} of them", "told in", started.elapsed().as_secs_f64() * 1000.0);
    Ok(())
}

async fn open(
    address: SocketAddr,
    organization: &str,
    token: &str,
) -> anyhow::Result<WebSocketStream<TcpStream>> {
    let mut request = format!("ws://{address}/ws/dashboard/{organization}").into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let stream = TcpStream::connect(address).await?;
    let config = tokio_tungstenite::tungstenite::protocol::WebSocketConfig::default().read_buffer_size(4096);
    Ok(client_async_with_config(request, stream, Some(config)).await?.0)
}
