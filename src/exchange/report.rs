//! Every error of an import as a file, written while the errors are found.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::{sync::mpsc, task::JoinHandle};
use uuid::Uuid;

use super::{Import, KEPT, LineError, delimited::guarded};
use crate::{
    app::App,
    error::{Error, Result},
    files::{self, File, Purpose},
    tenancy::Tenant,
};

/// What the import itself tells.
pub const SHOWN: usize = 100;
/// How many the file has. A report must not be many times the size of what it is about.
const MOST: usize = 10_000;
const BYTES_TOGETHER: usize = 64 * 1024;

/// The errors of one pass over a file.
pub struct Report {
    app: Arc<App>,
    tenant: Tenant,
    by: Uuid,
    name: String,
    /// The first of them.
    shown: Vec<LineError>,
    /// Those that are not shown.
    others: usize,
    open: Option<Open>,
}

/// A file that is being written.
struct Open {
    /// `None` once all of it was sent.
    sender: Option<mpsc::Sender<Result<Bytes>>>,
    file: JoinHandle<Result<File>>,
    text: csv::Writer<Vec<u8>>,
}

/// What is received, until nobody sends any more.
pub fn received<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> + Send + Unpin {
    Box::pin(stream::unfold(receiver, |mut receiver| async move {
        let next = receiver.recv().await?;
        Some((next, receiver))
    }))
}

impl Report {
    pub fn new(app: &Arc<App>, tenant: &Tenant, import: &Import) -> Self {
        let name = format!("{}-errors-{}.csv", import.resource, import.created_at.format("%Y%m%d-%H%M%S"));
        let (by, shown) = (import.requested_by, Vec::new());
        Self { app: app.clone(), tenant: tenant.clone(), by, name, shown, others: 0, open: None }
    }

    /// The first of the errors.
    pub fn shown(&self) -> &[LineError] {
        &self.shown
    }

    /// Takes errors, in the order of the lines. The file begins with the first that is not shown.
    pub async fn add(&mut self, errors: Vec<LineError>) -> Result<()> {
        for error in errors {
            if self.shown.len() < SHOWN {
                self.shown.push(error);
                continue;
            }
            self.others += 1;
            if self.others > MOST - SHOWN {
                continue;
            }
            if self.open.is_none() {
                self.begin()?;
            }
            let Some(open) = &mut self.open else { continue };
            write(&mut open.text, &error)?;
            if open.text.get_ref().len() > BYTES_TOGETHER {
                open.hand_on().await?;
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        let (sender, receiver) = mpsc::channel(4);
        let mut text = writer();
        text.write_record(["line", "field", "code", "message"]).map_err(Error::internal)?;
        for error in &self.shown {
            write(&mut text, error)?;
        }
        let (app, tenant, by, name) = (self.app.clone(), self.tenant.clone(), self.by, self.name.clone());
        let file = tokio::spawn(async move {
            let bytes = received(receiver);
            files::make(&app, &tenant, by, &name, "text/csv", Purpose::Report, Some(KEPT), bytes).await
        });
        self.open = Some(Open { sender: Some(sender), file, text });
        Ok(())
    }

    /// The file, if there is one. That it cannot be kept does not keep the import from telling its first
    /// errors.
    pub async fn end(self) -> Result<(Vec<LineError>, Option<Uuid>)> {
        let Some(mut open) = self.open else { return Ok((self.shown, None)) };
        if let Some(more) = self.others.checked_sub(MOST - SHOWN).filter(|more| *more > 0) {
            let told = format!("{more} more errors are not listed. Correct these first.");
            open.text.write_record(["", "", "", &told]).map_err(Error::internal)?;
        }
        open.hand_on().await?;
        open.sender = None;
        let file = (&mut open.file).await.map_err(Error::internal)?;
        if let Err(error) = &file {
            tracing::warn!(%error, "a report of errors could not be kept");
        }
        Ok((self.shown, file.ok().map(|file| file.id)))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // What nobody wants any more must not be kept as if it were whole; after the end it has no effect.
        self.file.abort();
    }
}

impl Open {
    async fn hand_on(&mut self) -> Result<()> {
        let text = std::mem::replace(&mut self.text, writer());
        let bytes = text.into_inner().map_err(|error| Error::internal(error.to_string()))?;
        // Whoever writes may have given up, and says why at the end.
        if let Some(sender) = &self.sender {
            let _ = sender.send(Ok(bytes.into())).await;
        }
        Ok(())
    }
}

fn writer() -> csv::Writer<Vec<u8>> {
    csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new())
}

fn write(text: &mut csv::Writer<Vec<u8>>, error: &LineError) -> Result<()> {
    let field = error.field.as_deref().unwrap_or_default();
    let (line, field, message) = (error.line.to_string(), guarded(field), guarded(&error.message));
    text.write_record([line.as_str(), &field, error.code.as_str(), &message]).map_err(Error::internal)
}
