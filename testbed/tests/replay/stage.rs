//! The folders that the recording loads adapters from.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A working directory as the recorded servers had one: `tiny/adapters`, `bad`, `work`.
#[derive(Debug)]
pub(crate) struct Stage {
    dir: TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let stage = Self { dir: TempDir::new().expect("a temporary folder") };
        for name in ["a1", "a2", "a3", "a4", "a5", "a6"] {
            stage.adapter(&format!("tiny/adapters/{name}"), &config(8), &weights(name, "q_proj"));
        }
        stage.adapter("tiny/adapters/rank32", &config(32), &weights("rank32", "q_proj"));
        stage.copy("a1", "work/sw");
        stage.copy("a1", "work/gone");
        stage.copy("a1", "work/q");
        stage.adapter("bad/rankmismatch", &config(4), &weights("a1", "q_proj"));
        stage.adapter("bad/junk", &config(8), b"junk junk junk junk");
        let whole = weights("a1", "q_proj");
        stage.adapter("bad/trunc", &config(8), &whole[..whole.len() - 1]);
        stage.adapter("bad/badcfg", "{nope", &whole);
        stage.adapter("bad/dora", &json!({"r": 8, "use_dora": true}).to_string(), &whole);
        stage.adapter("bad/wrongmod", &config(8), &weights("a1", "nonexist_proj"));
        stage.write("bad/cfgonly/adapter_config.json", config(8).as_bytes());
        stage.write("bad/full/model.safetensors", &whole);
        fs::create_dir_all(stage.path().join("bad/empty")).expect("an empty folder");
        stage
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Puts a copy of one of `a1` to `a6` into a folder.
    pub(crate) fn copy(&self, name: &str, folder: &str) {
        self.adapter(folder, &config(8), &weights(name, "q_proj"));
    }

    pub(crate) fn remove(&self, folder: &str) {
        fs::remove_dir_all(self.path().join(folder)).expect("the folder is there");
    }

    fn adapter(&self, folder: &str, config: &str, weights: &[u8]) {
        self.write(&format!("{folder}/adapter_config.json"), config.as_bytes());
        self.write(&format!("{folder}/adapter_model.safetensors"), weights);
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        let file: PathBuf = self.path().join(file);
        fs::create_dir_all(file.parent().expect("has a folder")).expect("a new folder");
        fs::write(file, bytes).expect("a new file");
    }
}

/// Where an adapter of the recording is loaded from.
pub(crate) fn folder(name: &str) -> String {
    if name.starts_with('a') { format!("tiny/adapters/{name}") } else { format!("work/{name}") }
}

fn config(rank: u64) -> String {
    json!({"r": rank, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}).to_string()
}

/// A file in the safetensors format whose bytes are its seed's: the length of a header, the header, the tensors.
fn weights(seed: &str, module: &str) -> Vec<u8> {
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
