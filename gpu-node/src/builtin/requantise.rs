//! The chat model's weights as the CPU kernels like them.
//!
//! candle has vectorised kernels for Q8_0 but none for Q4_1, which the published file uses: as Q8_0 the same weights
//! (8-bit blocks hold 4-bit ones with no visible loss) run several times faster. The conversion is done once and kept
//! next to the original.

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Error, Result};
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

const SUFFIX: &str = "q8_0.gguf";
/// Metadata key that marks a file as ours, and complete.
const MARK: &str = "turnpike.requantised";
/// Changes when the conversion does.
const MARK_VALUE: u32 = 1;

/// A model file that is open for reading.
pub(super) struct OpenModel {
    /// Header: metadata and tensor positions.
    pub(super) content: Content,
    /// The file.
    pub(super) reader: BufReader<File>,
}

/// Opens the faster copy of `original`, which is made in `dir` on the first time. Where it cannot be made (a read-only
/// or full folder), says so in the log and opens the original.
pub(super) fn open(original: &Path, dir: &Path) -> Result<OpenModel> {
    let copy = copy_path(original, dir);
    if let Ok(model) = read(&copy)
        && model.content.metadata.get(MARK).is_some_and(|v| v.to_u32().is_ok_and(|v| v == MARK_VALUE))
    {
        return Ok(model);
    }
    match write(original, &copy) {
        Ok(()) => read(&copy),
        Err(error) => {
            tracing::warn!(
                file = %copy.display(), %error,
                "the model could not be requantised to Q8_0 and is served as Q4_1, several times slower; make the folder writable"
            );
            read(original)
        }
    }
}

fn copy_path(original: &Path, dir: &Path) -> PathBuf {
    let stem = original.file_stem().map(Path::new).unwrap_or(original).with_extension(SUFFIX);
    dir.join(stem)
}

fn read(path: &Path) -> Result<OpenModel> {
    let mut reader = BufReader::new(File::open(path)?);
    let content = Content::read(&mut reader).map_err(|error| error.with_path(path))?;
    Ok(OpenModel { content, reader })
}

/// Writes `original` with its Q4_1 tensors as Q8_0 to `copy`, which appears complete or not at all.
fn write(original: &Path, copy: &Path) -> Result<()> {
    let OpenModel { content, mut reader } = read(original)?;
    let mut names: Vec<_> = content.tensor_infos.keys().collect();
    names.sort_unstable();
    let tensors = names
        .iter()
        .map(|name| Ok((name.as_str(), convert(content.tensor(&mut reader, name, &Device::Cpu)?)?)))
        .collect::<Result<Vec<_>>>()?;
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();

    let mark = Value::U32(MARK_VALUE);
    let mut metadata: Vec<_> = content.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    metadata.push((MARK, &mark));
    metadata.sort_unstable_by_key(|(key, _)| *key);

    // Named by process, so that two that start at once do not write into one file; the last rename wins.
    let partial = copy.with_extension(format!("{}.partial", std::process::id()));
    let written = write_file(&partial, &metadata, &tensors).and_then(|()| Ok(fs::rename(&partial, copy)?));
    if written.is_err() {
        // It may not even have been created.
        let _ = fs::remove_file(&partial);
    }
    written
}

fn write_file(path: &Path, metadata: &[(&str, &Value)], tensors: &[(&str, &QTensor)]) -> Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    gguf_file::write(&mut out, metadata, tensors)?;
    out.flush()?;
    let file = out.into_inner().map_err(|error| Error::Io(error.into_error()))?;
    Ok(file.sync_all()?)
}

fn convert(tensor: QTensor) -> Result<QTensor> {
    match tensor.dtype() {
        GgmlDType::Q4_1 => QTensor::quantize(&tensor.dequantize(&Device::Cpu)?, GgmlDType::Q8_0),
        _ => Ok(tensor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Tensor;

    fn original(dir: &Path) -> PathBuf {
        let path = dir.join("tiny.q4_1.gguf");
        let values: Vec<f32> = (0..128_u8).map(|i| f32::from(i % 16) - 8.0).collect();
        let tensor = Tensor::from_vec(values, (2, 64), &Device::Cpu).unwrap();
        let tensor = QTensor::quantize(&tensor, GgmlDType::Q4_1).unwrap();
        let name = Value::String("tiny".to_owned());
        write_file(&path, &[("general.name", &name)], &[("w", &tensor)]).unwrap();
        path
    }

    fn weight(model: &mut OpenModel) -> QTensor {
        model.content.tensor(&mut model.reader, "w", &Device::Cpu).unwrap()
    }

    #[test]
    fn a_requantised_copy_is_made_once_and_holds_the_same_weights() {
        let dir = tempfile::tempdir().unwrap();
        let original = original(dir.path());
        let before = weight(&mut read(&original).unwrap()).dequantize(&Device::Cpu).unwrap();

        let after = weight(&mut open(&original, dir.path()).unwrap());
        assert_eq!(after.dtype(), GgmlDType::Q8_0);
        let after = after.dequantize(&Device::Cpu).unwrap();
        let worst = (before - after).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 0.05, "{worst}");

        let made = fs::metadata(dir.path().join("tiny.q8_0.gguf")).unwrap().modified().unwrap();
        open(&original, dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path().join("tiny.q8_0.gguf")).unwrap().modified().unwrap(), made);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "a partial file was left");
    }

    #[test]
    fn where_the_copy_cannot_be_written_the_original_serves() {
        let dir = tempfile::tempdir().unwrap();
        let original = original(dir.path());
        let nowhere = dir.path().join("absent");
        assert_eq!(weight(&mut open(&original, &nowhere).unwrap()).dtype(), GgmlDType::Q4_1);
    }

    #[test]
    fn a_torn_copy_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let original = original(dir.path());
        fs::write(dir.path().join("tiny.q8_0.gguf"), b"GGUF torn").unwrap();
        assert_eq!(weight(&mut open(&original, dir.path()).unwrap()).dtype(), GgmlDType::Q8_0);
    }
}
