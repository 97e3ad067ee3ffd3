//! The folders that the recorded servers loaded adapters from.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A working directory like that of the recorded servers: `tiny/adapters`, `bad`, `work`.
#[derive(Debug)]
pub(crate) struct WorkingDir {
    dir: TempDir,
}

impl WorkingDir {
    pub(crate) fn new() -> Self {
        let working_dir = Self { dir: TempDir::new().expect("a temporary folder") };
        for name in ["a1", "a2", "a3", "a4", "a5", "a6"] {
            working_dir.write_adapter(
                &format!("tiny/adapters/{name}"),
                &adapter_config(8),
                &adapter_weights(name, "q_proj"),
            );
        }
        working_dir.write_adapter("tiny/adapters/rank32", &adapter_config(32), &adapter_weights("rank32", "q_proj"));
        working_dir.copy_adapter("a1", "work/sw");
        working_dir.copy_adapter("a1", "work/gone");
        working_dir.copy_adapter("a1", "work/q");
        working_dir.write_adapter("bad/rankmismatch", &adapter_config(4), &adapter_weights("a1", "q_proj"));
        working_dir.write_adapter("bad/junk", &adapter_config(8), b"junk junk junk junk");
        let weights = adapter_weights("a1", "q_proj");
        working_dir.write_adapter("bad/trunc", &adapter_config(8), &weights[..weights.len() - 1]);
        working_dir.write_adapter("bad/badcfg", "{nope", &weights);
        working_dir.write_adapter("bad/dora", &json!({"r": 8, "use_dora": true}).to_string(), &weights);
        working_dir.write_adapter("bad/wrongmod", &adapter_config(8), &adapter_weights("a1", "nonexist_proj"));
        working_dir.write_file("bad/cfgonly/adapter_config.json", adapter_config(8).as_bytes());
        working_dir.write_file("bad/full/model.safetensors", &weights);
        fs::create_dir_all(working_dir.path().join("bad/empty")).expect("an empty folder");
        working_dir
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Copies one of the adapters `a1` to `a6` into a folder.
    pub(crate) fn copy_adapter(&self, name: &str, folder: &str) {
        self.write_adapter(folder, &adapter_config(8), &adapter_weights(name, "q_proj"));
    }

    pub(crate) fn remove_dir(&self, folder: &str) {
        fs::remove_dir_all(self.path().join(folder)).expect("the folder exists");
    }

    fn write_adapter(&self, folder: &str, config: &str, weights: &[u8]) {
        self.write_file(&format!("{folder}/adapter_config.json"), config.as_bytes());
        self.write_file(&format!("{folder}/adapter_model.safetensors"), weights);
    }

    fn write_file(&self, file: &str, bytes: &[u8]) {
        let file: PathBuf = self.path().join(file);
        fs::create_dir_all(file.parent().expect("has a folder")).expect("a new folder");
        fs::write(file, bytes).expect("a new file");
    }
}

/// Returns the source that the recording loads an adapter from.
pub(crate) fn adapter_source(name: &str) -> String {
    if name.starts_with('a') { format!("tiny/adapters/{name}") } else { format!("work/{name}") }
}

fn adapter_config(rank: u64) -> String {
    json!({"r": rank, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}).to_string()
}

/// Returns a file in the safetensors format that contains `seed`: the header's length, the header, the tensors.
fn adapter_weights(seed: &str, module: &str) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for layer in 0..2 {
        for half in ["lora_A", "lora_B"] {
            let begin = data.len();
            data.extend_from_slice(seed.as_bytes());
            let name = format!("base_model.model.model.layers.{layer}.self_attn.{module}.{half}.weight");
            header.insert(name, json!({"dtype": "U8", "shape": [seed.len()], "data_offsets": [begin, data.len()]}));
        }
    }
    let header = Value::Object(header).to_string();
    let length = u64::try_from(header.len()).expect("a short header").to_le_bytes();
    [&length[..], header.as_bytes(), &data].concat()
}
