//! A DNS server whose TXT records a test can set.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{LazyLock, Mutex},
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{RData, Record, rdata::TXT},
};
use tokio::net::UdpSocket;

static RECORDS: LazyLock<Mutex<HashMap<String, Vec<String>>>> = LazyLock::new(Default::default);

/// Sets the TXT records of a name.
pub fn set(name: &str, texts: &[&str]) {
    let texts = texts.iter().map(|text| text.to_string()).collect();
    RECORDS.lock().unwrap().insert(name.trim_end_matches('.').to_lowercase(), texts);
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
    let name = query.name().to_string().trim_end_matches('.').to_lowercase();
    match RECORDS.lock().unwrap().get(&name) {
        Some(texts) => {
            for text in texts {
                let data = RData::TXT(TXT::new(vec![text.clone()]));
                answer.answers.push(Record::from_rdata(query.name().clone(), 60, data));
            }
        }
        None => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    answer
}
