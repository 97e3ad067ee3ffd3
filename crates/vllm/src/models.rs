//! Parser of the `/v1/models` response.

use crate::{ApiCall, VllmError};
use serde::Deserialize;

/// One entry of `/v1/models`: a base model, or a registered adapter.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ModelCard {
    /// Name that requests use.
    pub id: String,
    /// Path or hub name that vLLM was given for the model or adapter.
    #[serde(default)]
    pub root: Option<String>,
    /// Base model of an adapter; `None` for a base model.
    #[serde(default)]
    pub parent: Option<String>,
}

impl ModelCard {
    /// Returns whether this is a base model, which must never be unloaded.
    pub fn is_base_model(&self) -> bool {
        self.parent.is_none()
    }

    /// Parses the body of a `/v1/models` response.
    pub(crate) fn parse_list(body: &[u8]) -> Result<Vec<Self>, VllmError> {
        #[derive(Deserialize)]
        struct ModelList {
            data: Vec<ModelCard>,
        }
        serde_json::from_slice::<ModelList>(body).map(|list| list.data).map_err(|error| VllmError::UnexpectedResponse {
            call: ApiCall::Models.to_string(),
            status: 200,
            detail: format!("not a list of models: {error}"),
        })
    }
}
