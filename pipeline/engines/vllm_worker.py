"""vLLM behind a pipe: one JSON request a line on stdin, one JSON answer a line on what was stdout.

Run by the Python of the environment that has vLLM; imports nothing of this project. vLLM prints to stdout, which
therefore becomes stderr before it is imported. With one process for everything and no thread that polls, a worker that
waits for its next line takes no processor from whoever is measured meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

VOCABULARY = -1  # log-probabilities of all words


class Worker:
    def start(self, model: str, **options: Any) -> dict[str, Any]:
        """The engine from a folder; what it allocated."""
        from vllm import LLM, __version__

        self.llm = LLM(
            model,
            skip_tokenizer_init=True,
            enforce_eager=options.pop("enforce_eager", True),
            disable_log_stats=False,
            max_logprobs=VOCABULARY,
            **options,
        )
        self.core: Any = self.llm.llm_engine.engine_core.engine_core
        manager = self.core.scheduler.kv_cache_manager
        self.pool = manager.block_pool
        config = manager.kv_cache_config
        return {
            "version": __version__,
            "n_blocks": config.num_blocks,
            "block_size": self.llm.llm_engine.vllm_config.cache_config.block_size,
            "block_bytes": sum(tensor.size for tensor in config.kv_cache_tensors) // config.num_blocks,
        }

    def generate(self, requests: list[dict[str, Any]], logprobs: bool = False) -> dict[str, Any]:
        """Greedy tokens of all requests, which join as they arrive, in the order of their arrival; and when each token
        was there, in seconds from the start.
        """
        engine = self.llm.llm_engine
        self.llm.reset_prefix_cache()  # of the trial before
        before = self._counted()
        tokens: list[list[int]] = [[] for _ in requests]
        token_s: list[list[float]] = [[] for _ in requests]
        said: list[list[list[float]]] = [[] for _ in requests]
        wanted = [_wanted(one, logprobs) for one in requests]
        peak = n_joined = 0
        started = time.perf_counter()
        while n_joined < len(requests) or engine.has_unfinished_requests():
            if not engine.has_unfinished_requests():
                time.sleep(max(0.0, started + requests[n_joined]["arrival_s"] - time.perf_counter()))
            now = time.perf_counter() - started
            while n_joined < len(requests) and requests[n_joined]["arrival_s"] <= now:
                prompt = {"prompt_token_ids": requests[n_joined]["prompt"]}
                engine.add_request(str(n_joined), prompt, wanted[n_joined])
                n_joined += 1
            outputs = engine.step()
            now = time.perf_counter() - started
            peak = max(peak, self._n_used())
            for output in outputs:
                index, (new,) = int(output.request_id), output.outputs
                tokens[index] += list(new.token_ids)
                token_s[index] += [now] * len(new.token_ids)
                said[index] += [_row(step) for step in new.logprobs or []]
        after = self._counted()
        counted = {name: after[name] - before[name] for name in after}
        return {"tokens": tokens, "token_s": token_s, "n_used": peak, "logprobs": said, **counted}

    def _n_used(self) -> int:
        """Without the block that stands for no block."""
        return self.pool.num_gpu_blocks - 1 - self.pool.get_num_free_blocks()

    def _counted(self) -> dict[str, int]:
        names = {
            "vllm:num_preemptions": "n_preemptions",
            "vllm:prefix_cache_queries": "n_prefix_tokens",
            "vllm:prefix_cache_hits": "n_prefix_hits",
        }
        counters = {metric.name: metric.value for metric in self.llm.get_metrics() if metric.name in names}
        return {own: int(counters.get(name, 0)) for name, own in names.items()}


def _wanted(request: dict[str, Any], logprobs: bool) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=request["n_new_tokens"],
        ignore_eos=True,
        detokenize=False,
        logprobs=VOCABULARY if logprobs else None,
        output_kind=RequestOutputKind.DELTA,
    )


def _row(step: Any) -> list[float]:
    """Log-probabilities by token id."""
    return [step[token].logprob for token in sorted(step)]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
