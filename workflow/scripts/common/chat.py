"""Which tokens a chat template makes of a prompt and its answer. Needs a tokenizer of transformers', given to it."""

FILE = "chat_template.jinja"  # the template's file in a model's directory, as transformers has it


class Chat:
    """The user's turn is the prompt, the assistant's the answer, tokenized as by transformers' apply_chat_template.

    end: what follows an answer, up to the token by which the model ends its turn. add_bos: the tokenizer's first token
    stands before all, where the template has not put it there.
    """

    def __init__(self, tokenizer, template, add_bos=False):
        if add_bos and tokenizer.bos_token_id is None:
            raise ValueError("add_bos: the tokenizer has no BOS")
        self.tokenizer, self.template, self.after = tokenizer, template, []
        self.bos = [tokenizer.bos_token_id] if add_bos else []
        for one, other in zip(*(reversed(self.split("", answer)[1]) for answer in "01")):  # which end differently
            if one != other:
                break
            self.after.insert(0, one)
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        last = next((place for place, token in enumerate(self.after) if token in special), None)
        self.end = [*self.after, tokenizer.eos_token_id] if last is None else self.after[: last + 1]

    def prompt(self, *turns):
        """The tokens of the user's turn, up to where the answer begins; or of both turns."""
        messages = [{"role": role, "content": turn.strip(" ")} for role, turn in zip(("user", "assistant"), turns)]
        options = {"chat_template": self.template, "add_generation_prompt": len(turns) == 1, "tokenize": False}
        text = self.tokenizer.apply_chat_template(messages, **options)
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids if ids[:1] == self.bos else self.bos + ids

    def split(self, prompt, answer):
        """(the prompt's tokens, the answer's without what follows); ValueError where no border is between them."""
        before = self.prompt(prompt)
        if not answer.strip(" "):
            return before, []
        whole = self.prompt(prompt, answer)
        behind = len(whole) - len(self.after)
        if whole[: len(before)] != before or whole[behind:] != self.after or behind < len(before):
            raise ValueError("by the chat template, prompt and answer have tokens in common, so none can be predicted")
        return before, whole[len(before) : behind]
