//! How fast this machine can be expected to compute, and one thread per sequence.

/// Environment that a process with this engine should be started with. candle reads it once, at its first
/// multiplication. Its thread pool waits in a spin loop, so on a machine that also does other work two threads are slower
/// than one, and only one sequence can use the pool at a time; the engine runs sequences side by side instead.
pub const ENVIRONMENT: [(&str, &str); 2] = [("CANDLE_NUM_THREADS", "1"), ("RAYON_NUM_THREADS", "1")];

/// Says clearly when generation will be slow on this machine and why; `None` when it will not.
pub fn cpu_note() -> Option<String> {
    note(std::env::consts::ARCH, vector_units())
}

/// Whether the CPU has the vector units that the kernels are written for. On x86-64 the kernels choose at run time, so
/// how the program was built plays no part.
#[cfg(target_arch = "x86_64")]
fn vector_units() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

#[cfg(not(target_arch = "x86_64"))]
fn vector_units() -> bool {
    // NEON belongs to every 64-bit Arm; other architectures have no kernels of their own.
    cfg!(target_arch = "aarch64")
}

fn note(architecture: &str, vector_units: bool) -> Option<String> {
    let lacking = match architecture {
        _ if vector_units => return None,
        "x86_64" => "this CPU lacks AVX2 and FMA (most since 2013 have them; a virtual machine may hide them)",
        _ => "the built-in engine has no fast kernels for this kind of CPU",
    };
    Some(format!("{lacking}: the built-in engine will work, but several times slower"))
}

/// Warns when the process was started without [`ENVIRONMENT`].
pub(super) fn check_environment() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for (name, value) in ENVIRONMENT {
        if cores > 1 && std::env::var(name).ok().as_deref() != Some(value) {
            tracing::warn!("{name} is not {value}: sequences will wait for each other's threads; set {name}={value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_without_vector_units_is_named() {
        assert_eq!(note("x86_64", true), None);
        assert!(note("x86_64", false).unwrap().contains("AVX2"));
        assert!(note("riscv64", false).unwrap().contains("slower"));
    }
}
