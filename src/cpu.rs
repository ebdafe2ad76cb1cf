//! Says clearly that this build needs a newer processor, instead of dying of an illegal instruction.

/// Features that builds are tuned for: whether this build uses each, its name to the compiler and in `/proc/cpuinfo`.
#[cfg(target_arch = "x86_64")]
const FEATURES: [(bool, &str, &str); 9] = [
    (cfg!(target_feature = "ssse3"), "ssse3", "ssse3"),
    (cfg!(target_feature = "sse4.2"), "sse4.2", "sse4_2"),
    (cfg!(target_feature = "popcnt"), "popcnt", "popcnt"),
    (cfg!(target_feature = "avx"), "avx", "avx"),
    (cfg!(target_feature = "avx2"), "avx2", "avx2"),
    (cfg!(target_feature = "fma"), "fma", "fma"),
    (cfg!(target_feature = "f16c"), "f16c", "f16c"),
    (cfg!(target_feature = "bmi2"), "bmi2", "bmi2"),
    (cfg!(target_feature = "avx512f"), "avx512f", "avx512f"),
];
#[cfg(not(target_arch = "x86_64"))]
const FEATURES: [(bool, &str, &str); 0] = [];

/// Fails with advice if this build was tuned for a processor that has more than this one.
///
/// Asks the system rather than `is_x86_feature_detected!`, which answers "yes" at compile time for whatever the build
/// was tuned for.
pub(crate) fn check() -> Result<(), String> {
    let Ok(cpuinfo) = std::fs::read_to_string("/proc/cpuinfo") else { return Ok(()) };
    let Some(flags) = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")) else { return Ok(()) };
    let missing = missing(&FEATURES, flags);
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "this build needs a processor with {}, which this machine's lacks; \
         build without a target-cpu setting (RUSTFLAGS, .cargo/config.toml), or with target-cpu=x86-64",
        missing.join(", ")
    ))
}

fn missing(features: &[(bool, &'static str, &'static str)], flags: &str) -> Vec<&'static str> {
    let has = |flag: &str| flags.split_whitespace().any(|found| found == flag);
    features.iter().filter(|(used, _, flag)| *used && !has(flag)).map(|(_, name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_features_that_are_used_and_absent_are_missing() {
        let features = [(true, "avx2", "avx2"), (true, "sse4.2", "sse4_2"), (false, "avx512f", "avx512f")];
        assert_eq!(missing(&features, ": fpu sse4_2 avx2x"), ["avx2"]);
        assert_eq!(check(), Ok(()));
    }
}
