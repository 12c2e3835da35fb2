//! A DNS server whose TXT and A records a test can set.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{LazyLock, Mutex},
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{
        RData, Record, RecordType,
        rdata::{A, TXT},
    },
};
use tokio::net::UdpSocket;

/// What is known of a name.
#[derive(Default)]
struct Known {
    texts: Vec<String>,
    /// What is answered to the first question for addresses, to the second and so on; the last one
    /// stays.
    addresses: Vec<Vec<Ipv4Addr>>,
}

static RECORDS: LazyLock<Mutex<HashMap<String, Known>>> = LazyLock::new(Default::default);

/// Sets the TXT records of a name.
pub fn set(name: &str, texts: &[&str]) {
    let texts = texts.iter().map(|text| text.to_string()).collect();
    RECORDS.lock().unwrap().entry(plain(name)).or_default().texts = texts;
}

/// Sets the A records of a name: one list for each time that it is asked for, the last one for good.
pub fn set_addresses(name: &str, answers: &[&[&str]]) {
    let parse = |address: &&str| -> Ipv4Addr { address.parse().unwrap() };
    let addresses = answers.iter().map(|answer| answer.iter().map(parse).collect()).collect();
    RECORDS.lock().unwrap().entry(plain(name)).or_default().addresses = addresses;
}

/// Starts the server on a free port.
pub async fn serve() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let Ok(asked) = Message::from_vec(&buffer[..length]) else { continue };
            if let Ok(answer) = answer(&asked).to_vec() {
                let _ = socket.send_to(&answer, from).await;
            }
        }
    });
    address
}

fn answer(asked: &Message) -> Message {
    let mut answer = asked.clone();
    answer.metadata.message_type = MessageType::Response;
    let Some(query) = asked.queries.first() else { return answer };
    let mut records = RECORDS.lock().unwrap();
    let Some(known) = records.get_mut(&plain(&query.name().to_string())) else {
        answer.metadata.response_code = ResponseCode::NXDomain;
        return answer;
    };
    // Of another type there is nothing, which is no error.
    let data: Vec<RData> = match query.query_type() {
        RecordType::TXT => known.texts.iter().map(|text| RData::TXT(TXT::new(vec![text.clone()]))).collect(),
        RecordType::A => {
            let now = match known.addresses.len() {
                0 => Vec::new(),
                1 => known.addresses[0].clone(),
                _ => known.addresses.remove(0),
            };
            now.into_iter().map(|address| RData::A(A(address))).collect()
        }
        _ => Vec::new(),
    };
    for data in data {
        answer.answers.push(Record::from_rdata(query.name().clone(), 60, data));
    }
    answer
}

fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_lowercase()
}
