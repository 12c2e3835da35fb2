//! Small pictures of images, made in bounded memory and one at a time.
//!
//! What comes out is encoded anew: it holds no metadata and nothing but a picture.

use std::{io::Cursor, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, codecs::jpeg::JpegEncoder};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{Loose, Thumbnail, find, key, thumbnail_key};
use crate::{
    app::App,
    error::{Code, Error, Result},
    jobs::{Policy, Running, Work},
    tenancy::Tenant,
};

/// The longer side of a thumbnail, in pixels.
pub const SIDE: u32 = 256;
/// Files that are larger are not looked at: they are in memory while they are decoded.
pub const MOST_BYTES: usize = 50 * 1024 * 1024;
/// What an image may have on a side, in pixels...
const MOST_PIXELS: u32 = 8_192;
/// ... and in memory: 50 megapixels of a photograph.
const MOST_MEMORY: u64 = 160 * 1024 * 1024;
/// Bytes that a JPEG has of a pixel where it is not decoded by rows: two for each of four colors.
const MOST_OF_A_PIXEL: u64 = 8;

/// One image at a time is decoded in a process.
static DECODING: Semaphore = Semaphore::const_new(1);

/// A picture that was made small.
#[derive(Clone, Debug)]
pub struct Picture {
    pub bytes: Vec<u8>,
    pub content_type: &'static str,
}

/// Makes an image small: none of its sides is longer than `side`. Refuses with 400 on `file` what is no image,
/// is broken, or needs more memory than is allowed, and tells why.
pub async fn shrink(bytes: Vec<u8>, side: u32) -> Result<Picture> {
    let one = DECODING.acquire().await.map_err(Error::internal)?;
    let made = tokio::task::spawn_blocking(move || {
        // It goes on to its end, whoever still waits for it.
        let _one = one;
        shrunk(&bytes, side)
    })
    .await;
    // Whatever a decoder stumbles over, only its own thread falls.
    made.unwrap_or_else(|_| Err("it could not be decoded".into()))
        .map_err(|told| Error::invalid("file", format!("cannot be shown as a picture: {told}")))
}

fn shrunk(bytes: &[u8], side: u32) -> Result<Picture, String> {
    let told = |error: image::ImageError| error.to_string();
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let format = reader.format().filter(|format| is_known(*format));
    let format = format.ok_or("it is not PNG, JPEG, GIF, WebP or BMP")?;
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MOST_PIXELS), Some(MOST_PIXELS));
    limits.max_alloc = Some(MOST_MEMORY);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder().map_err(told)?;
    let (width, height) = decoder.dimensions();
    limits.check_dimensions(width, height).map_err(told)?;
    // What comes out counts as well.
    limits.reserve(decoder.total_bytes()).map_err(told)?;
    if format == ImageFormat::Jpeg && !is_decoded_by_rows(bytes) {
        let pixels = u64::from(width) * u64::from(height);
        limits.reserve(pixels * MOST_OF_A_PIXEL).map_err(told)?;
    }
    decoder.set_limits(limits).map_err(told)?;
    let orientation = decoder.orientation().map_err(told)?;
    let image = DynamicImage::from_decoder(decoder).map_err(told)?;
    let mut small = if width > side || height > side { image.thumbnail(side, side) } else { image };
    small.apply_orientation(orientation);
    encoded(&small).map_err(told)
}

/// Whether a JPEG has all its colors in one scan that comes row by row. Of any other, all that is in it is held
/// beside the picture while it is decoded: the decoder does not count that. In doubt it is another.
fn is_decoded_by_rows(bytes: &[u8]) -> bool {
    // The mark of a picture that becomes clearer with every scan; where there are pixels it cannot stand.
    if bytes.windows(2).any(|pair| pair == [0xff, 0xc2]) {
        return false;
    }
    let (mut at, mut colors) = (2, None);
    while let Some([0xff, mark, high, low]) = bytes.get(at..at + 4) {
        let segment = bytes.get(at + 4..at + 2 + usize::from(u16::from_be_bytes([*high, *low])));
        match (mark, segment) {
            (0xc0 | 0xc1, Some(segment)) if colors.is_none() => colors = segment.get(5),
            (0xda, Some(segment)) => return colors.is_some() && segment.first() == colors,
            (0xc4 | 0xdb | 0xdd | 0xe0..=0xef | 0xfe, Some(_)) => {}
            _ => return false,
        }
        at += 2 + usize::from(u16::from_be_bytes([*high, *low]));
    }
    false
}

fn is_known(format: ImageFormat) -> bool {
    use ImageFormat as F;
    matches!(format, F::Png | F::Jpeg | F::Gif | F::WebP | F::Bmp)
}

fn encoded(image: &DynamicImage) -> image::ImageResult<Picture> {
    let mut bytes = Vec::new();
    if image.color().has_alpha() {
        DynamicImage::ImageRgba8(image.to_rgba8())
            .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)?;
        return Ok(Picture { bytes, content_type: "image/png" });
    }
    let encoder = JpegEncoder::new_with_quality(&mut bytes, 82);
    DynamicImage::ImageRgb8(image.to_rgb8()).write_with_encoder(encoder)?;
    Ok(Picture { bytes, content_type: "image/jpeg" })
}

/// The type of what [`shrink`] made.
pub fn type_of_picture(bytes: &[u8]) -> &'static str {
    if bytes.starts_with(b"\x89PNG") { "image/png" } else { "image/jpeg" }
}

/// Makes the small picture of an image.
#[derive(Serialize, Deserialize)]
pub struct MakeThumbnail {
    pub file_id: Uuid,
}

impl Work for MakeThumbnail {
    const KIND: &'static str = "make_thumbnail";
    const POLICY: Policy =
        Policy { slots: 1, per_lane: 1, limit: Duration::from_secs(120), ..Policy::DEFAULT };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &job.app;
        let Some(tenant) = job.tenant().await?.filter(|tenant| !tenant.is_deleted()) else { return Ok(()) };
        Ok(make(app, &tenant, self.file_id, job.attempt >= Self::POLICY.attempts).await?)
    }
}

/// Makes the small picture of an image that has none yet. Where it is tried for the last time, there will be none
/// whatever was wrong.
pub async fn make(app: &App, tenant: &Tenant, id: Uuid, is_last: bool) -> Result<()> {
    let tx = tenant.begin().await?;
    let file = match find(&tx, id).await {
        Err(error) if error.code() == Code::NotFound => return Ok(()),
        file => file?,
    };
    drop(tx);
    if file.thumbnail != Thumbnail::Pending {
        return Ok(());
    }
    let made = match file.size as usize <= MOST_BYTES {
        true => match app.files.get_small(&key(tenant.id(), file.id), MOST_BYTES).await {
            Ok(bytes) => shrink(bytes, SIDE).await,
            Err(error) => Err(error),
        },
        false => Err(Error::invalid("file", "is too large for a thumbnail")),
    };
    let picture = match made {
        Ok(picture) => Some(picture),
        // What is wrong with the image does not get better, and who waits for the store waits in vain
        // after the last attempt.
        Err(error) if error.code() == Code::Validation || is_last => {
            tracing::info!(file = %file.id, %error, "no thumbnail is made");
            None
        }
        Err(error) => return Err(error),
    };
    let path = thumbnail_key(tenant.id(), file.id);
    let state = if picture.is_some() { Thumbnail::Ready } else { Thumbnail::Refused };
    let loose = Loose::new(&app.files, path.clone());
    if let Some(picture) = picture {
        app.files.put(&path, stream::iter([Ok(Bytes::from(picture.bytes))])).await?;
    }
    let tx = tenant.begin().await?;
    let sql = "update files set thumbnail = $2 where id = $1 and thumbnail = 'pending'";
    let changed = tx.execute(sql, &[&file.id, &state]).await?;
    // Somebody else who made it as well has put it in the same place, and their row tells of it.
    if changed == 1 || tx.query_opt("select 1 from files where id = $1", &[&file.id]).await?.is_some() {
        loose.keep();
    }
    tx.commit().await
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage, Rgba, RgbaImage};

    use super::*;

    fn png(image: DynamicImage) -> Vec<u8> {
        let mut bytes = Vec::new();
        image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
        bytes
    }

    #[tokio::test]
    async fn pictures_become_small_and_keep_their_form() {
        let wide = DynamicImage::ImageRgb8(RgbImage::from_pixel(1000, 500, Rgb([200, 10, 10])));
        let picture = shrink(png(wide), SIDE).await.unwrap();
        assert_eq!(picture.content_type, "image/jpeg");
        let small = image::load_from_memory(&picture.bytes).unwrap();
        assert_eq!((small.width(), small.height()), (256, 128));
        let clear = DynamicImage::ImageRgba8(RgbaImage::from_pixel(10, 10, Rgba([0, 0, 0, 0])));
        let picture = shrink(png(clear), SIDE).await.unwrap();
        assert_eq!(type_of_picture(&picture.bytes), "image/png");
        assert_eq!(image::load_from_memory(&picture.bytes).unwrap().width(), 10, "nothing is made larger");
    }

    /// The beginning of a PNG that promises so much.
    fn beginning(width: u32, height: u32, color: u8) -> Vec<u8> {
        let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, color, 0, 0, 0]].concat();
        let chunk = |kind: &[u8], data: &[u8]| {
            let named = [kind, data].concat();
            let sum = crc32fast::hash(&named).to_be_bytes();
            [&(data.len() as u32).to_be_bytes()[..], &named, &sum].concat()
        };
        [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &header), &chunk(b"IDAT", b"\x78\x9c\x03\0")].concat()
    }

    /// A JPEG whose header promises so much, with a scan of so many of its three colors.
    fn jpeg(side: u16, mark: u8, scanned: u8) -> Vec<u8> {
        let small = DynamicImage::ImageRgb8(RgbImage::from_pixel(16, 16, Rgb([9, 90, 200])));
        let mut bytes = Vec::new();
        small.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Jpeg).unwrap();
        let at = |mark: u8, bytes: &[u8]| bytes.windows(2).position(|pair| pair == [0xff, mark]).unwrap();
        let (frame, scan) = (at(0xc0, &bytes), at(0xda, &bytes));
        bytes[frame + 1] = mark;
        bytes[frame + 5..frame + 7].copy_from_slice(&side.to_be_bytes());
        bytes[frame + 7..frame + 9].copy_from_slice(&side.to_be_bytes());
        bytes[scan + 4] = scanned;
        bytes
    }

    #[tokio::test]
    async fn a_jpeg_that_is_not_decoded_by_rows_takes_more_memory_than_its_picture() {
        assert!(is_decoded_by_rows(&jpeg(4_096, 0xc0, 3)));
        for (mark, scanned) in [(0xc2, 3), (0xc0, 1)] {
            let bytes = jpeg(4_096, mark, scanned);
            assert!(!is_decoded_by_rows(&bytes));
            let told = shrink(bytes, SIDE).await.unwrap_err();
            assert_eq!(told.code(), Code::Validation);
        }
        assert!(!is_decoded_by_rows(b"") && !is_decoded_by_rows(&[0xff, 0xd8, 0xff]));
    }

    #[tokio::test]
    async fn a_picture_that_nobody_waits_for_is_decoded_alone_all_the_same() {
        let large = png(DynamicImage::ImageLuma8(image::GrayImage::new(6_000, 6_000)));
        let gone = shrink(large, SIDE);
        assert!(tokio::time::timeout(Duration::from_millis(1), gone).await.is_err());
        assert_eq!(DECODING.available_permits(), 0, "it is still being decoded");
    }

    #[tokio::test]
    async fn bombs_and_what_is_no_picture_are_refused() {
        let bomb = beginning(10_000, 10_000, 0);
        // Four bytes for each pixel are more memory than is allowed.
        let heavy = beginning(8_000, 8_000, 6);
        let broken = png(DynamicImage::ImageLuma8(image::GrayImage::new(100, 100)))[..60].to_vec();
        for bytes in [bomb, broken, heavy, b"<svg/>".to_vec(), Vec::new()] {
            assert_eq!(shrink(bytes, SIDE).await.unwrap_err().code(), Code::Validation);
        }
    }
}
