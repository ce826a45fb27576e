"""Plain greedy decoding by transformers on torch, as a yardstick for our own loop. Needs torch, so it is imported on demand."""

import pathlib
import time
from collections.abc import Sequence

from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput


class Transformers:
    """The same weights in `transformers`, with a static cache and as many threads as this process may use."""

    def __init__(self, folder: pathlib.Path, dtype: str):
        try:
            import torch
            import transformers
        except ImportError:
            raise BadInput("--against-transformers needs torch; install requirements-dev.txt") from None
        self.torch = torch
        self.threads = processes.count_cores()
        torch.set_num_threads(self.threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model = model.to(self.device).eval()
        self.model.generation_config.eos_token_id = None  # every reply is as long as it may be, as ours are

    def generate(self, prompt: Sequence[int], new: int) -> tuple[list[int], float]:
        """``new`` greedy tokens, and the seconds they took, the prefill included."""
        ids = self.torch.tensor([list(prompt)], device=self.device)
        kinds = {"do_sample": False, "cache_implementation": "static", "pad_token_id": 0}
        began = time.perf_counter()
        with self.torch.inference_mode():
            out = self.model.generate(ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=new, **kinds)
        tokens = out[0, len(prompt) :].tolist()
        return tokens, time.perf_counter() - began
