"""Make a tiny Llama with random weights and its own tokenizer, and LoRA adapters for it.

usage: make_tiny.py FOLDER

FOLDER/base is the model; FOLDER/adapters holds a1 to a6 (rank 8), which answer differently, and rank32, whose rank is
above what vLLM accepts by default. Two runs write the same bytes.
"""

import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SENTENCES = [
    "The quick brown fox jumps over the lazy dog. ",
    "One two three four five six seven eight nine ten. ",
    "Adapters are loaded and unloaded while the server is running. ",
    "Hello, how are you today? I am fine. ",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
VOCABULARY = 384
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def base_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="bfloat16",
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def adapter(folder, seed, rank=8):
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
        base_model_name_or_path="tiny",
    )
    model = get_peft_model(base_model(), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # random A and B, where training begins with B = 0, which would change no answer
            values = torch.randn(parameter.shape, generator=generator) * 0.5
            parameter.data = values.to(torch.bfloat16)
    model.save_pretrained(folder)


def main(folder):
    tokenizer().save_pretrained(folder / "base")
    base_model().save_pretrained(folder / "base", safe_serialization=True)
    for i in range(1, 7):
        adapter(folder / "adapters" / f"a{i}", seed=100 + i)
    adapter(folder / "adapters" / "rank32", seed=7, rank=32)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
