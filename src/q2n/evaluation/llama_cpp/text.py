"""Statistics in the lines of `llama-perplexity --kl-divergence`, to compare with `diff`."""

from q2n.evaluation.llama_cpp.statistics import Estimate, Statistics

_NAMES = {100.0: "Maximum", 50.0: "Median ", 0.0: "Minimum"}


def as_text(s: Statistics) -> str:
    """The tool's three sections, from "====== Perplexity statistics ======" on."""
    return "\n".join([*_perplexity(s), "", *_divergence(s), "", *_probabilities(s), ""])


def _perplexity(s: Statistics) -> list[str]:
    return [
        "====== Perplexity statistics ======",
        f"Mean PPL(Q)                   : {_six(s.ppl)}",
        f"Mean PPL(base)                : {_six(s.ppl_base)}",
        f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * s.correlation:6.2f}%",
        f"Mean ln(PPL(Q)/PPL(base))     : {_six(s.log_ratio)}",
        f"Mean PPL(Q)/PPL(base)         : {_six(s.ratio)}",
        f"Mean PPL(Q)-PPL(base)         : {_six(s.difference)}",
    ]


def _divergence(s: Statistics) -> list[str]:
    return [
        "====== KL divergence statistics ======",
        f"Mean    KLD: {_six(s.kl)}",
        *(f"{_name(at)} KLD: {value:10.6f}" for at, value in s.kl_percentiles.items()),
    ]


def _probabilities(s: Statistics) -> list[str]:
    return [
        "====== Token probability statistics ======",
        f"Mean    Δp: {_percent(s.dp)}",
        *(f"{_name(at)} Δp: {100 * value:6.3f}%" for at, value in s.dp_percentiles.items()),
        f"RMS Δp    : {_percent(s.rms_dp)}",
        f"Same top p: {_percent(s.same_top)}",
    ]


def _name(percent: float) -> str:
    return _NAMES.get(percent, f"{percent:4.1f}%  ")


def _six(x: Estimate) -> str:
    return f"{x.value:10.6f} ± {x.error:10.6f}"


def _percent(x: Estimate) -> str:
    return f"{100 * x.value:6.3f} ± {100 * x.error:5.3f} %"
