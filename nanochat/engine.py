"""
Cached generation: token ids in, token ids out.

The prompt is read once, as a single row, and its decode state is copied to all rows. After that every token costs
one forward of one position. The last token of the prompt is fed like a generated token. So there is one loop, logits
are made only for positions that are sampled, and nothing is computed after the last token.

All rows stand at the same position and come from one prompt. The interface is upstream's (karpathy/nanochat,
nanochat/engine.py) without its tools, which only chat models call.
"""

import torch

from nanochat.layers.cache import DecodeCache

END_TOKENS = ("<|assistant_end|>", "<|bos|>")  # a row that samples one of these has ended


def sample_next_token(logits, rng, temperature=1.0, top_k=None):
    """logits [B,V] -> ids [B,1]. Temperature 0 takes the largest; top_k None or 0 keeps the whole vocabulary."""
    if temperature < 0:
        raise ValueError(f"temperature={temperature}: expected 0 (greedy) or more")
    if temperature < 1e-30:  # such as 0; logits divided by less are not finite in fp32
        return logits.argmax(dim=-1, keepdim=True)
    if not top_k:
        return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=rng)
    top, ids = logits.topk(min(top_k, logits.size(-1)), dim=-1)
    return ids.gather(1, torch.multinomial((top / temperature).softmax(dim=-1), 1, generator=rng))


class Engine:
    """Generates tokens with `model`, a GPT. `tokenizer` is needed only for the ids that end a row."""

    def __init__(self, model, tokenizer):
        self.model = model
        self.end_ids = {tokenizer.encode_special(name) for name in END_TOKENS}

    def generate(self, tokens: list[int], num_samples=1, max_tokens=None, temperature=1.0, top_k=None, seed=42):
        """Continue one prompt in num_samples rows. Yields (token of each row, mask of each row) per position.

        Generation ends at max_tokens, or when every row has ended. The token that ends a row is yielded too. A row that
        has ended is no longer computed: it repeats that token, and its mask turns from 1 (sampled) to 0.

        max_tokens None fills the context that the model was trained on. A larger max_tokens goes on beyond that
        context, where the model was never trained, up to the end of the rotary table. A still larger value raises
        ValueError.
        """
        max_tokens = self._check(tokens, num_samples, max_tokens)
        return self._generate(tokens, num_samples, max_tokens, temperature, top_k, seed)

    def _check(self, tokens, num_samples, max_tokens) -> int:
        if not tokens or num_samples < 1:
            raise ValueError(f"{len(tokens)} prompt tokens, num_samples={num_samples}: expected at least one of each; "
                             "an empty prompt is the BOS token")
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens}: expected at least 1, or None to fill the context")
        context, reach = self.model.config.sequence_len, self.model.cos.size(1)
        if max_tokens is None:
            max_tokens = context - len(tokens)
            if max_tokens < 1:
                raise ValueError(f"the prompt of {len(tokens)} tokens fills the model's context of {context}; "
                                 "shorten it, or give max_tokens")
        if len(tokens) + max_tokens - 1 > reach:  # the last token is never fed
            raise ValueError(f"{len(tokens)} prompt tokens and max_tokens={max_tokens}: expected at most {reach + 1} "
                             f"together, where the rotary table ends (the model was trained on {context}); keep the "
                             "tail of the prompt, or lower max_tokens")
        return max_tokens

    @torch.inference_mode()
    def _generate(self, tokens, num_samples, max_tokens, temperature, top_k, seed):
        device = self.model.get_device()
        rng = torch.Generator(device=device).manual_seed(seed)
        cache = DecodeCache(1, len(tokens) + max_tokens - 1)
        if len(tokens) > 1:
            self.model.trunk(torch.tensor([tokens[:-1]], device=device), cache)
        cache = cache.expand(num_samples) if num_samples > 1 else cache
        column, live = [tokens[-1]] * num_samples, list(range(num_samples))
        for _ in range(max_tokens):
            ids = torch.tensor([[column[row]] for row in live], device=device)
            logits = self.model(ids, cache=cache)[:, -1]
            for row, token in zip(live, sample_next_token(logits, rng, temperature, top_k)[:, 0].tolist()):
                column[row] = token
            yield list(column), [int(row in live) for row in range(num_samples)]
            going_on = [i for i, row in enumerate(live) if column[row] not in self.end_ids]
            if not going_on:
                return
            if len(going_on) < len(live):
                cache, live = keep_rows(cache, going_on, device), [live[i] for i in going_on]

    def generate_batch(self, tokens: list[int], num_samples=1, **kwargs):
        """(rows, masks): the prompt and the sampled tokens of each row, without the token that ended it; mask 1 =
        sampled."""
        rows = [list(tokens) for _ in range(num_samples)]
        masks = [[0] * len(tokens) for _ in range(num_samples)]
        for column, sampled in self.generate(tokens, num_samples, **kwargs):
            for i in range(num_samples):
                if sampled[i] and column[i] not in self.end_ids:
                    rows[i].append(column[i])
                    masks[i].append(1)
        return rows, masks


def keep_rows(cache: DecodeCache, rows: list[int], device) -> DecodeCache:
    """A copy of the cache that holds only these rows."""
    index = torch.tensor(rows, device=device)
    new = DecodeCache(len(rows), cache.max_seq_len)
    new.pos = cache.pos
    new.state = {layer: {name: t.index_select(0, index) for name, t in tensors.items()}
                 for layer, tensors in cache.state.items()}
    return new
