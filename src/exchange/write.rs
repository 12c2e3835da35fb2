//! Writes rows as the lines of a file.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::{Format, Kind, delimited::guarded};
use crate::error::{Error, Result};

/// Collects the lines of a file until they are taken.
pub struct Writer<'a> {
    kind: &'a Kind,
    form: Form,
}

enum Form {
    Csv(Box<csv::Writer<Vec<u8>>>),
    Json { bytes: Vec<u8>, begun: bool },
}

impl<'a> Writer<'a> {
    pub fn new(kind: &'a Kind, format: Format) -> Self {
        let form = match format {
            Format::Csv => {
                let mut csv = lines();
                // Into memory nothing fails.
                let _ = csv.write_record(kind.fields.iter().map(|field| field.name));
                Form::Csv(Box::new(csv))
            }
            Format::Json => Form::Json { bytes: b"[".to_vec(), begun: false },
        };
        Self { kind, form }
    }

    /// Adds a row, with a value for every field of the kind.
    pub fn row(&mut self, values: &[Value]) -> Result<()> {
        match &mut self.form {
            Form::Csv(csv) => {
                csv.write_record(values.iter().map(cell)).map_err(Error::internal)?;
            }
            Form::Json { bytes, begun } => {
                bytes.extend_from_slice(if *begun { &b",\n"[..] } else { b"\n" });
                *begun = true;
                let object: Map<String, Value> = self
                    .kind
                    .fields
                    .iter()
                    .map(|field| field.name.to_owned())
                    .zip(values.iter().cloned())
                    .collect();
                serde_json::to_writer(bytes, &object).map_err(Error::internal)?;
            }
        }
        Ok(())
    }

    /// What was written since the last time.
    pub fn take(&mut self) -> Bytes {
        match &mut self.form {
            Form::Csv(csv) => {
                let written = std::mem::replace(&mut **csv, lines());
                written.into_inner().unwrap_or_default().into()
            }
            Form::Json { bytes, .. } => std::mem::take(bytes).into(),
        }
    }

    /// The rest of the file.
    pub fn end(mut self) -> Result<Bytes> {
        if let Form::Json { bytes, .. } = &mut self.form {
            bytes.extend_from_slice(b"\n]\n");
        }
        Ok(self.take())
    }
}

fn lines() -> csv::Writer<Vec<u8>> {
    csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new())
}

/// A value as a field of CSV.
fn cell(value: &Value) -> Vec<u8> {
    match value {
        Value::Null => Vec::new(),
        Value::String(text) => guarded(text).into_owned().into_bytes(),
        Value::Array(values) => {
            let texts: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
            guarded(&texts.join(", ")).into_owned().into_bytes()
        }
        other => other.to_string().into_bytes(),
    }
}
