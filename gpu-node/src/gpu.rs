//! GPU figures through NVML, NVIDIA's management library, loaded when the agent starts. A machine without it is fine.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// How busy the GPUs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GpuLoad {
    /// Mean utilisation, 0 to 1000 thousandths.
    pub(crate) utilization_permille: u16,
    /// Memory in use over all GPUs, 0 to 1000 thousandths.
    pub(crate) memory_permille: u16,
}

/// The machine's NVIDIA GPUs.
#[derive(Debug)]
pub(crate) struct Gpus {
    nvml: Option<Nvml>,
    names: Vec<String>,
}

impl Gpus {
    /// Looks for GPUs and says in the log what it found.
    pub(crate) fn detect() -> Self {
        match Nvml::init().and_then(|nvml| Ok((names(&nvml)?, nvml))) {
            Ok((names, nvml)) => {
                tracing::info!(gpus = ?names, "GPUs found");
                Self { nvml: Some(nvml), names }
            }
            Err(reason) => {
                tracing::info!(%reason, "no NVIDIA GPUs: reports carry no GPU figures");
                Self { nvml: None, names: Vec::new() }
            }
        }
    }

    /// Their product names.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// How busy they are; `None` without any, or if the driver does not say. May block for some milliseconds.
    pub(crate) fn sample(&self) -> Option<GpuLoad> {
        let nvml = self.nvml.as_ref().filter(|_| !self.names.is_empty())?;
        match figures(nvml) {
            Ok(figures) => summary(&figures),
            Err(error) => {
                tracing::debug!(%error, "the driver gives no GPU figures");
                None
            }
        }
    }
}

/// Of one GPU.
#[derive(Clone, Copy, Debug)]
struct Figures {
    utilization_percent: u32,
    used_bytes: u64,
    total_bytes: u64,
}

fn names(nvml: &Nvml) -> Result<Vec<String>, NvmlError> {
    (0..nvml.device_count()?).map(|index| nvml.device_by_index(index)?.name()).collect()
}

fn figures(nvml: &Nvml) -> Result<Vec<Figures>, NvmlError> {
    (0..nvml.device_count()?)
        .map(|index| {
            let device = nvml.device_by_index(index)?;
            let memory = device.memory_info()?;
            let utilization_percent = device.utilization_rates()?.gpu;
            Ok(Figures { utilization_percent, used_bytes: memory.used, total_bytes: memory.total })
        })
        .collect()
}

fn summary(figures: &[Figures]) -> Option<GpuLoad> {
    let count = u64::try_from(figures.len()).ok()?;
    let percent: u64 = figures.iter().map(|f| u64::from(f.utilization_percent.min(100))).sum();
    let used: u128 = figures.iter().map(|f| u128::from(f.used_bytes)).sum();
    let total: u128 = figures.iter().map(|f| u128::from(f.total_bytes)).sum();
    Some(GpuLoad {
        utilization_permille: u16::try_from((percent * 10).checked_div(count)?).ok()?,
        memory_permille: u16::try_from((used.min(total) * 1000).checked_div(total)?).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utilisation_is_a_mean_and_memory_a_share_of_the_whole() {
        let gpu =
            |utilization_percent, used_bytes, total_bytes| Figures { utilization_percent, used_bytes, total_bytes };
        let load = summary(&[gpu(100, 10, 10), gpu(25, 0, 30)]);
        assert_eq!(load, Some(GpuLoad { utilization_permille: 625, memory_permille: 250 }));
        assert_eq!(summary(&[]), None);
        assert_eq!(summary(&[gpu(0, 0, 0)]), None);
    }
}
