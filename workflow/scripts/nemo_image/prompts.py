"""How rows become tokens in training and prediction: NeMo's way, with BOS where the run has add_bos, or by the model's
chat template. Needs only NeMo and what it needs."""

from common.chat import Chat
from nemo_image.setup import exit_all

CHAT_TEMPLATE = "file with the model's chat template, beside its tokenizer; none: prompts as they are"


class Plain:
    """What NeMo makes of a row: the prompt, a space, the answer and EOS. These count; NeMo's data set makes them."""

    def __init__(self, tokenizer, add_bos=False):
        self.tokenizer, self.end = tokenizer, [tokenizer.eos_id]
        self.bos = [tokenizer.bos_id] if add_bos else []

    def prompt(self, text):
        return self.bos + self.tokenizer.text_to_ids(text.strip(" "))

    def marks(self):
        """Control tokens, as [INST], that sentencepiece never finds in a text, and transformers does."""
        pieces = getattr(self.tokenizer, "tokenizer", None)
        if not hasattr(pieces, "is_control"):  # Hugging Face's
            return set()
        return {pieces.id_to_piece(number) for number in range(pieces.vocab_size()) if pieces.is_control(number)}

    def split(self, prompt, answer):
        return self.prompt(prompt), self.tokenizer.text_to_ids(f" {answer.strip(' ')}")


def example_of(chat, row):
    """What NeMo's data set makes of a row, by the chat template."""
    prompt, answer = chat.split(row["input"], row["output"])
    ids = [*prompt, *answer, *chat.end]
    example = {"input_ids": ids, "token_count": len(ids), "answer_ids": answer, "answer_start_idx": len(prompt)}
    return example | {"context_ids": prompt, "context_length": len(prompt), "metadata": {}}


def use_prompts(tokenizer, chat_template, add_bos):
    """Has NeMo's data sets make tokens so; returns the Plain or Chat of it. tokenizer: NeMo's; chat_template: the
    template's file, with transformers' tokenizer beside it, or None. That NeMo's data sets put BOS is load_config's."""
    if add_bos and (tokenizer.bos_id is None or tokenizer.bos_id < 0):
        exit_all("add_bos: the model's tokenizer has no BOS: take the key out of the run.")
    if chat_template is None:
        return Plain(tokenizer, add_bos)
    from nemo.collections.nlp.data.language_modeling.megatron.gpt_sft_dataset import GPTSFTDataset
    from transformers import AutoTokenizer, __version__

    try:
        chat = Chat(AutoTokenizer.from_pretrained(chat_template.parent), chat_template.read_text("utf-8"), add_bos)
    except Exception as error:  # of many kinds, where the tokenizer came after this transformers
        why = " ".join(str(error).split())[:200]
        exit_all(f"{chat_template}: transformers {__version__} can't put prompts through it: {why}")
    GPTSFTDataset._process_example = lambda dataset, row: example_of(chat, row)
    return chat
