"""An audit as text, for people: a table of what was compared, the tensors that differ, and the verdict."""

from vitscale.train.audit import AuditReport
from vitscale.train.audit_weights import CheckpointComparison

_SHOWN_TENSORS = 20
_MIB = 2**20


def describe_audit(report: AuditReport) -> str:
    """A row per thing compared, then the tensors that differ most, then one sentence that says what is proved."""
    rows = [_samples_row(report), _data_set_row(report), _weights_row(report), _losses_row(report), _config_row(report)]
    width = max(len(verdict) for _, verdict, _ in rows)
    lines = [f"A  {report.run_a}", f"B  {report.run_b}", ""]
    lines += [f"{name:<13}  {verdict:<{width}}  {detail}".rstrip() for name, verdict, detail in rows]
    for checkpoint in report.checkpoints or ():
        if not checkpoint.is_equal:
            lines += ["", *_tensor_lines(checkpoint)]
            break
    return "\n".join([*lines, "", _verdict(report)]) + "\n"


_Row = tuple[str, str, str]


def _samples_row(report: AuditReport) -> _Row:
    samples = report.samples
    equal = ""
    if samples.num_steps:
        equal = f"{samples.num_samples:,} samples of steps {samples.first_step} to {samples.last_step} are the same, in the same order"
    verdict = {"equal": "equal", "different": "DIFFERENT", "other_batches": "OTHER BATCHES", "incomplete": "INCOMPLETE"}[samples.verdict]
    return "samples", verdict, "; ".join(filter(None, (samples.detail, equal, *samples.notes)))


def _data_set_row(report: AuditReport) -> _Row:
    data_set = report.data_set
    order = f"the order differs: {_pairs(data_set.order)}" if data_set.order else ""
    if data_set.is_equal is None:
        return "data set", "unknown", "a run without checkpoints does not say which data set it read"
    if data_set.is_equal:
        return "data set", "equal", order or "the same manifests and order"
    return "data set", "DIFFERENT", "; ".join(filter(None, (_pairs(data_set.different), order)))


def _weights_row(report: AuditReport) -> _Row:
    if report.checkpoints is None:
        return "weights", "not asked", ""
    if not report.checkpoints:
        steps = [f"{name} has {', '.join(map(str, held)) or 'none'}" for name, held in zip("AB", report.checkpoint_steps, strict=True)]
        return "weights", "INCOMPLETE", f"no checkpoint of the same step: {'; '.join(steps)}"
    newest = report.checkpoints[-1]
    size = f"{newest.num_tensors} tensors, {newest.num_bytes / _MIB:,.1f} MiB each"
    equal = [str(checkpoint.step) for checkpoint in report.checkpoints if checkpoint.is_equal]
    different = [str(checkpoint.step) for checkpoint in report.checkpoints if not checkpoint.is_equal]
    if not different:
        return "weights", "equal", f"bit for bit at step{_plural(equal)} {', '.join(equal)}: {size}"
    found = [f"they differ at step{_plural(different)} {', '.join(different)}"]
    if equal:
        found.append(f"they are equal bit for bit at step{_plural(equal)} {', '.join(equal)}")
    return "weights", "DIFFERENT", f"{'; '.join(found)}: {size}"


def _losses_row(report: AuditReport) -> _Row:
    losses = report.losses
    if not losses.num_steps:
        return "losses", "unknown", "no step whose loss both runs logged"
    if losses.first_different_step is None or losses.values is None:
        return "losses", "equal", f"bit for bit at all {losses.num_steps} steps that both logged"
    a, b = losses.values
    return "losses", "different", f"first at step {losses.first_different_step}: {a!r} in A, {b!r} in B"


def _config_row(report: AuditReport) -> _Row:
    return "configuration", "different" if report.config else "equal", _pairs(report.config)


def _tensor_lines(checkpoint: CheckpointComparison) -> list[str]:
    """The table of a checkpoint's differing tensors, those with the largest difference first."""
    ranked = sorted(checkpoint.different, key=lambda tensor: -(float("inf") if tensor.max_delta is None else tensor.max_delta))
    rows = [("max |delta|", "elements", f"tensors that differ at step {checkpoint.step}, the first such checkpoint")]
    for tensor in ranked[:_SHOWN_TENSORS]:
        delta = "-" if tensor.max_delta is None else f"{tensor.max_delta:.3e}"
        rows.append((delta, f"{tensor.num_different:,}", f"{tensor.name} ({tensor.kind}) {tensor.problem}".rstrip()))
    if len(ranked) > _SHOWN_TENSORS:
        rows.append(("", "", f"and {len(ranked) - _SHOWN_TENSORS} more; --json lists all"))
    if checkpoint.state:
        rows.append(("", "", f"host state: {_pairs(checkpoint.state)}"))
    return [f"{delta:>11}  {elements:>12}  {name}" for delta, elements, name in rows]


def _verdict(report: AuditReport) -> str:
    if report.samples.verdict == "incomplete":
        return "Verdict: whether the runs saw the same samples in the same order is not proved."
    if not report.same_samples:
        return "Verdict: the runs did not see the same samples in the same order."
    same = "Verdict: the runs saw the same samples in the same order"
    if report.same_weights is None:
        return f"{same}."
    if report.same_weights:
        return f"{same} and hold the same weights."
    return f"{same}; their weights {'differ' if report.checkpoints else 'could not be compared'}."


def _pairs(found: dict[str, tuple[object, object]]) -> str:
    return "; ".join(f"{key} {a!r} in A, {b!r} in B" for key, (a, b) in found.items())


def _plural(steps: list[str]) -> str:
    return "s" if len(steps) > 1 else ""
