"""How well drafting went, in the words of vLLM 0.32 (`metrics.speculative_decoding` of a response; its page *Per-Request
Acceptance Metrics*), which tools such as AIPerf read."""

from collections.abc import Iterable, Sequence


def speculative_decoding(histogram: Sequence[int], scored: Iterable[int]) -> dict | None:
    """The block of a reply, or of several as one; None for plain decoding, which has no drafts to be right.

    A step is a target pass that scored at least one draft: a lookup without a match drafts nothing, and vLLM does not count such
    passes. What a limit or a stop cut off a pass is not accepted, as everywhere here. Of a tree, whose branches exclude each
    other, every drafted node is a draft token, so that ``draft_acceptance_rate`` is at most L / (N - 1); ``num_spec_tokens`` is L,
    the most that a pass can accept.

    Args:
      histogram: passes that delivered 0..L drafts and one token more.
      scored: for each pass the nodes that it scored, with the root; zeros stand for no pass.
    """
    if len(histogram) < 2:
        return None
    drafts = [nodes - 1 for nodes in scored if nodes]
    by_accepted = [histogram[0] - drafts.count(0), *histogram[1:]]
    steps, accepted = sum(by_accepted), sum(count * times for count, times in enumerate(by_accepted))
    return {
        "mean_acceptance_length": 1 + accepted / steps if steps else 1.0,
        "draft_acceptance_rate": accepted / sum(drafts) if steps else 0.0,
        "acceptance_histogram": by_accepted,
        "num_spec_steps": steps,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": sum(drafts),
        "num_spec_tokens": len(histogram) - 1,
    }
