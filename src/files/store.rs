//! The store: objects by path, in a local folder or in S3, written and read in pieces.
//!
//! What is written is there once it is whole, or not at all. Who stops in the middle leaves nothing: parts
//! that were sent are taken back, also where the future that sent them is dropped.

use std::{
    fs, io,
    ops::Range,
    path::{Path as Folder, PathBuf},
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    ClientOptions, GetOptions, GetRange, GetResultPayload, ObjectStore, ObjectStoreExt, PutPayload,
    RetryConfig, WriteMultipart,
    aws::AmazonS3Builder,
    client::{
        HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
    },
    local::LocalFileSystem,
    path::Path,
    prefix::PrefixStore,
};
use poem::http::{StatusCode, header};
use ring::digest::{Context, SHA256};
use secrecy::ExposeSecret;
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    runtime::Handle,
    sync::oneshot,
};
use tokio_util::io::ReaderStream;

use super::uploads::Uploads;
use crate::{
    auth::sealing::hex,
    config::FilesConfig,
    error::{Code, Error, Result},
};

/// What is not larger is written at once, the rest in parts of this size: with those under way, a write holds
/// 18 MiB at most. S3 takes 10,000 parts of at least 5 MiB.
pub const PART: usize = 6 * 1024 * 1024;
const PARTS_AT_ONCE: usize = 2;
/// How much is read of a local file at a time.
const PIECE: usize = 128 * 1024;
/// How much of the beginning is kept to look at.
const HEAD: usize = 8 * 1024;
/// Objects that are deleted at the same time.
pub(super) const DELETED_AT_ONCE: usize = 8;
/// S3 is given up on after so much silence; how long a large object takes does not matter.
const SILENCE: Duration = Duration::from_secs(30);

/// Where objects lie. Clones are the same store.
#[derive(Clone, Default)]
pub struct Store {
    objects: Option<Arc<dyn ObjectStore>>,
    /// Where it is a folder.
    folder: Option<PathBuf>,
    uploads: Arc<Uploads>,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Bytes.
    pub size: u64,
    /// In hexadecimal digits.
    pub sha256: String,
    /// The first bytes.
    pub head: Vec<u8>,
}

/// An object that is there.
#[derive(Clone, Debug)]
pub struct Object {
    pub path: String,
    pub size: u64,
    pub written_at: DateTime<Utc>,
}

impl Store {
    /// As it is configured; connects to nothing yet. Without a folder or a bucket nothing can be stored.
    pub fn new(config: &FilesConfig) -> anyhow::Result<Self> {
        let uploads = Arc::new(Uploads::new(config.uploads_at_once));
        if let Some(folder) = &config.folder {
            let told = || format!("files.folder (FILES_FOLDER) is {}", folder.display());
            fs::create_dir_all(folder).with_context(told)?;
            // What is answered with success is on the disk.
            let objects = LocalFileSystem::new_with_prefix(folder).with_context(told)?;
            let objects = objects.with_automatic_cleanup(true).with_fsync(true);
            return Ok(Self { objects: Some(Arc::new(objects)), folder: Some(folder.clone()), uploads });
        }
        let Some(bucket) = &config.s3_bucket else { return Ok(Self { uploads, ..Self::default() }) };
        let objects = in_s3(bucket, config).context("files.s3_bucket and what belongs to it")?;
        Ok(Self { objects: Some(objects), folder: None, uploads })
    }

    /// How many uploads may be under way.
    pub fn uploads(&self) -> &Uploads {
        &self.uploads
    }

    /// Whether there is a place for files.
    pub fn is_there(&self) -> bool {
        self.objects.is_some()
    }

    /// Refuses with 503, and says what to configure, where there is no place for files.
    pub fn must_be_there(&self) -> Result<()> {
        self.objects().map(|_| ())
    }

    fn objects(&self) -> Result<&Arc<dyn ObjectStore>> {
        self.objects.as_ref().ok_or_else(|| {
            Error::unavailable(
                "There is no place for files here yet. Whoever runs this service sets files.folder (FILES_FOLDER) \
                 or files.s3_bucket (FILES_S3_BUCKET).",
                60,
            )
        })
    }

    /// Writes an object. An error among the pieces is the error of the whole, and leaves nothing.
    pub async fn put(
        &self,
        path: &str,
        mut pieces: impl Stream<Item = Result<Bytes>> + Send + Unpin,
    ) -> Result<Stored> {
        let mut writing = Writing::new(self.objects()?.clone(), Path::from(path));
        let mut digest = Context::new(&SHA256);
        let (mut size, mut head) = (0, Vec::new());
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            size += piece.len() as u64;
            digest.update(&piece);
            head.extend_from_slice(&piece[..piece.len().min(HEAD - head.len())]);
            writing.write(&piece).await?;
        }
        writing.finish().await?;
        Ok(Stored { size, sha256: hex(digest.finish().as_ref()), head })
    }

    /// Reads an object in pieces.
    pub async fn get(&self, path: &str) -> Result<BoxStream<'static, Result<Bytes>>> {
        Ok(self.read(path, None).await?.1)
    }

    /// Reads a part of an object, which has bytes, in pieces.
    pub async fn get_range(
        &self,
        path: &str,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        Ok(self.read(path, Some(GetRange::Bounded(range))).await?.1)
    }

    /// With how many bytes there are.
    async fn read(
        &self,
        path: &str,
        range: Option<GetRange>,
    ) -> Result<(u64, BoxStream<'static, Result<Bytes>>)> {
        let options = GetOptions::new().with_range(range);
        let found = self.objects()?.get_opts(&Path::from(path), options).await.map_err(failed)?;
        let range = found.range.clone();
        let size = range.end - range.start;
        let pieces = match found.payload {
            // In larger pieces than the store's own, each of which is a task.
            GetResultPayload::File(file, _) => {
                let mut file = tokio::fs::File::from_std(file);
                file.seek(io::SeekFrom::Start(range.start)).await.map_err(Error::internal)?;
                ReaderStream::with_capacity(file.take(size), PIECE).map_err(Error::internal).boxed()
            }
            GetResultPayload::Stream(pieces) => pieces.map_err(failed).boxed(),
        };
        Ok((size, pieces))
    }

    /// All of a small object; one that is larger is an error.
    pub async fn get_small(&self, path: &str, most: usize) -> Result<Vec<u8>> {
        let (size, mut pieces) = self.read(path, None).await?;
        let too_large = || Error::internal(format!("{path} has more than {most} bytes"));
        let size = usize::try_from(size).ok().filter(|size| *size <= most).ok_or_else(too_large)?;
        let mut bytes = Vec::with_capacity(size);
        while let Some(piece) = pieces.try_next().await? {
            if bytes.len() + piece.len() > most {
                return Err(too_large());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// Deletes an object; one that is not there is deleted.
    pub async fn delete(&self, path: &str) -> Result<()> {
        match self.objects()?.delete(&Path::from(path)).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            deleted => deleted.map_err(failed),
        }
    }

    /// Deletes everything below a path and says how many objects that were.
    pub async fn delete_all(&self, prefix: &str) -> Result<usize> {
        let store = self.clone();
        let deletions = self.list(prefix)?.map(move |object| {
            let store = store.clone();
            async move { store.delete(&object?.path).await }
        });
        let mut deletions = deletions.buffer_unordered(DELETED_AT_ONCE);
        let mut deleted = 0;
        while let Some(()) = deletions.try_next().await? {
            deleted += 1;
        }
        Ok(deleted)
    }

    /// What lies below a path, in no particular order.
    pub fn list(&self, prefix: &str) -> Result<BoxStream<'static, Result<Object>>> {
        let found = self.objects()?.list(Some(&Path::from(prefix)));
        let object = |meta: object_store::ObjectMeta| Object {
            path: meta.location.to_string(),
            size: meta.size,
            written_at: meta.last_modified,
        };
        Ok(found.map_ok(object).map_err(failed).boxed())
    }

    /// The names of the folders right below a path.
    pub async fn folders(&self, prefix: &str) -> Result<Vec<String>> {
        let found = self.objects()?.list_with_delimiter(Some(&Path::from(prefix))).await.map_err(failed)?;
        let names = found.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned));
        Ok(names.collect())
    }

    /// Copies an object within the store, without its bytes coming here.
    pub async fn copy(&self, from: &str, to: &str) -> Result<()> {
        self.objects()?.copy(&Path::from(from), &Path::from(to)).await.map_err(failed)
    }

    /// Removes what processes that were killed had begun to write more than so long ago. S3 does this by a
    /// rule of the bucket.
    pub async fn remove_unfinished(&self, older_than: Duration) -> Result<usize> {
        let Some(folder) = self.folder.clone() else { return Ok(0) };
        let removal = tokio::task::spawn_blocking(move || remove_unfinished(&folder, older_than));
        removal.await.map_err(Error::internal)?.map_err(Error::internal)
    }

    /// Writes, reads and deletes a small object.
    pub async fn check(&self) -> Result<()> {
        let path = format!("check/{}", uuid::Uuid::now_v7());
        let wrote = Bytes::from_static(b"rowhouse");
        self.put(&path, futures_util::stream::iter([Ok(wrote.clone())])).await?;
        let read = self.get_small(&path, 100).await;
        self.delete(&path).await?;
        match read? == wrote {
            true => Ok(()),
            false => Err(Error::internal("what was read is not what was written")),
        }
    }
}

fn in_s3(bucket: &str, config: &FilesConfig) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let plain = config.s3_endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let client = ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(5))
        .with_timeout_disabled()
        .with_read_timeout(SILENCE)
        .with_allow_http(plain);
    let retry =
        RetryConfig { max_retries: 3, retry_timeout: Duration::from_secs(60), ..RetryConfig::default() };
    let builder = match (&config.s3_access_key, &config.s3_secret_key) {
        (Some(key), Some(secret)) => {
            AmazonS3Builder::new().with_access_key_id(key).with_secret_access_key(secret.expose_secret())
        }
        // The role of the machine or of the pod.
        _ => AmazonS3Builder::from_env(),
    };
    let mut builder = builder
        .with_bucket_name(bucket)
        .with_region(&config.s3_region)
        .with_virtual_hosted_style_request(!config.s3_path_style)
        .with_client_options(client)
        .with_http_connector(Connector)
        .with_retry(retry);
    if let Some(endpoint) = &config.s3_endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    let objects = builder.build()?;
    Ok(match config.s3_prefix.as_str() {
        "" => Arc::new(objects),
        prefix => Arc::new(PrefixStore::new(objects, prefix)),
    })
}

/// Some servers, rclone among them, send a part of an object with the status of the whole, which the client
/// refuses. What says which part it is, is one.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Parts(ReqwestConnector::default().connect(options)?)))
    }
}

#[derive(Debug)]
struct Parts(HttpClient);

impl HttpService for Parts {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let mut response = self.0.execute(request).await?;
            if response.status() == StatusCode::OK && response.headers().contains_key(header::CONTENT_RANGE) {
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            }
            Ok(response)
        })
    }
}

/// What a store did not do.
fn failed(error: object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => {
            Error::new(Code::NotFound, "What this file held is not there any more.").caused_by(error)
        }
        other => {
            Error::unavailable("The store of files does not answer as it should. Try again in a moment.", 5)
                .caused_by(other)
        }
    }
}

/// An object that is being written.
struct Writing {
    objects: Arc<dyn ObjectStore>,
    path: Path,
    /// What there is while it is little.
    little: Vec<u8>,
    parts: Option<WriteMultipart>,
}

impl Writing {
    fn new(objects: Arc<dyn ObjectStore>, path: Path) -> Self {
        Self { objects, path, little: Vec::new(), parts: None }
    }

    /// Copies the piece: of a small one the reader may hold a large buffer.
    async fn write(&mut self, piece: &[u8]) -> Result<()> {
        if self.parts.is_none() {
            if self.little.len() + piece.len() <= PART {
                self.little.extend_from_slice(piece);
                return Ok(());
            }
            let upload = self.objects.put_multipart(&self.path).await.map_err(failed)?;
            let mut parts = WriteMultipart::new_with_chunk_size(upload, PART);
            parts.write(&std::mem::take(&mut self.little));
            self.parts = Some(parts);
        }
        if let Some(parts) = &mut self.parts {
            parts.wait_for_capacity(PARTS_AT_ONCE).await.map_err(failed)?;
            parts.write(piece);
        }
        Ok(())
    }

    /// Ends in a task of its own: it comes to an end whoever still waits for it, and if nobody does, what was
    /// written goes again.
    async fn finish(mut self) -> Result<()> {
        let (objects, path) = (self.objects.clone(), self.path.clone());
        let (parts, little) = (self.parts.take(), std::mem::take(&mut self.little));
        let (tell, told) = oneshot::channel();
        tokio::spawn(async move {
            let finished = match parts {
                Some(parts) => parts.finish().await,
                None => objects.put(&path, PutPayload::from(little)).await,
            };
            if let Err(Ok(_)) = tell.send(finished)
                && let Err(error) = objects.delete(&path).await
            {
                tracing::warn!(%error, %path, "an object that nobody waits for stays until it is collected");
            }
        });
        told.await.map_err(Error::internal)?.map_err(failed)?;
        Ok(())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let (Some(parts), Ok(runtime)) = (self.parts.take(), Handle::try_current()) else { return };
        let path = self.path.clone();
        runtime.spawn(async move {
            if let Err(error) = parts.abort().await {
                tracing::warn!(%error, %path, "parts of an upload that broke off could not be removed");
            }
        });
    }
}

/// A file that is being written has `#` and a number behind its name.
fn remove_unfinished(folder: &Folder, older_than: Duration) -> io::Result<usize> {
    let mut removed = 0;
    let entries = match fs::read_dir(folder) {
        // Others remove at the same time.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            removed += remove_unfinished(&path, older_than)?;
            continue;
        }
        let unfinished = entry.file_name().to_str().is_some_and(|name| {
            name.rsplit_once('#').is_some_and(|(_, end)| end.bytes().all(|b| b.is_ascii_digit()))
        });
        let age = SystemTime::now().duration_since(metadata.modified()?);
        if unfinished && age.is_ok_and(|age| age >= older_than) && fs::remove_file(path).is_ok() {
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn store() -> (Store, PathBuf) {
        let folder = std::env::temp_dir().join(format!("rowhouse-store-{}", uuid::Uuid::now_v7().simple()));
        fs::create_dir_all(&folder).unwrap();
        let objects = LocalFileSystem::new_with_prefix(&folder).unwrap().with_automatic_cleanup(true);
        (Store { objects: Some(Arc::new(objects)), folder: Some(folder.clone()), ..Store::default() }, folder)
    }

    fn pieces(many: usize) -> Vec<Result<Bytes>> {
        (0..many).map(|n| Ok(Bytes::from(vec![n as u8; 100_000]))).collect()
    }

    #[tokio::test]
    async fn small_and_large_objects_are_read_as_they_were_written() {
        let (store, folder) = store();
        for many in [0, 1, 200] {
            let stored = store.put("a/b", stream::iter(pieces(many))).await.unwrap();
            assert_eq!(stored.size, many as u64 * 100_000);
            let read = store.get_small("a/b", usize::MAX).await.unwrap();
            assert_eq!(hex(ring::digest::digest(&SHA256, &read).as_ref()), stored.sha256);
            assert_eq!(stored.head.len(), if many == 0 { 0 } else { HEAD });
        }
        let mut part = store.get_range("a/b", 99_999..100_001).await.unwrap();
        let mut bytes = Vec::new();
        while let Some(piece) = part.try_next().await.unwrap() {
            bytes.extend_from_slice(&piece);
        }
        assert_eq!(bytes, [0, 1]);
        store.copy("a/b", "a/c").await.unwrap();
        assert_eq!(store.delete_all("a").await.unwrap(), 2);
        assert!(store.get("a/b").await.is_err());
        store.delete("a/b").await.unwrap();
        store.check().await.unwrap();
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn what_breaks_off_leaves_nothing() {
        let (store, folder) = store();
        let broken = || pieces(100).into_iter().chain([Err(Error::conflict("it broke off"))]);
        assert_eq!(store.put("a/b", stream::iter(broken())).await.unwrap_err().code(), Code::Conflict);
        // Dropped in the middle.
        let endless = stream::iter(pieces(100)).chain(stream::pending());
        let writing = store.put("a/c", Box::pin(endless));
        assert!(tokio::time::timeout(Duration::from_millis(300), writing).await.is_err());
        for _ in 0..200 {
            if fs::read_dir(folder.join("a")).map_or(0, Iterator::count) == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(fs::read_dir(folder.join("a")).map_or(0, Iterator::count), 0);
        fs::write(folder.join("left#1"), "x").unwrap();
        assert_eq!(store.remove_unfinished(Duration::from_secs(60)).await.unwrap(), 0);
        assert_eq!(store.remove_unfinished(Duration::ZERO).await.unwrap(), 1);
        fs::remove_dir_all(folder).unwrap();
    }
}
