"""What `stats` prints: the figures that one looks for first, a line each."""

from collections import Counter
from collections.abc import Sequence

from .stats import ASPECT_EDGES, BYTE_EDGES, SIDE_EDGES, Stats, label_order, quantile_edge

_NUM_CLASSES_SHOWN = 5


def stats_rows(stats: Stats) -> list[tuple[str, str]]:
    """Name and text of each line."""
    counts, manifest = stats.counts, stats.dataset.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    rows = [
        ("data set", stats.dataset.index_storage.root),
        ("samples", f"{manifest.num_samples} in {len(manifest.shards)} shards, {size / 2**20:.1f} MiB"),
        ("members", ", ".join(manifest.members)),
        ("measured", f"{counts.num_samples} samples, {counts.num_images} images, in {stats.seconds:.1f} s"),
    ]
    if counts.num_samples:
        mean = counts.num_bytes / counts.num_samples
        rows.append(("bytes per sample", f"mean {mean:.0f}, {_spread(counts.byte_histogram, BYTE_EDGES, digits=0)}"))
    rows += _class_rows(stats)
    if counts.num_images:
        rows += [
            ("shorter side", _spread(counts.side_histogram, SIDE_EDGES, digits=0)),
            ("width / height", _spread(counts.aspect_histogram, ASPECT_EDGES, digits=2)),
            ("mean of R, G, B", ", ".join(f"{value:.4f}" for value in stats.mean)),
            ("std of R, G, B", ", ".join(f"{value:.4f}" for value in stats.std)),
        ]
    rows.append(("unreadable", _some(counts.num_unreadable, stats.unreadable)))
    rows.append(("duplicate keys", _some(stats.num_duplicate_keys, stats.duplicate_keys)))
    return rows


def _class_rows(stats: Stats) -> list[tuple[str, str]]:
    labels, names = stats.counts.labels, stats.dataset.classes
    known = "no classes" if names is None else f"{len(names)} classes"
    if not labels:
        return [("labels", f"{known}, no sample has a label")]

    def named(label: str) -> str:
        name = names[int(label)] if names and label.isdecimal() and int(label) < len(names) else label
        return label if name == label else f"{name} ({label})"

    by_count = sorted(labels, key=lambda label: (-labels[label], label_order(label)))
    shown = [f"{named(label)} {labels[label]}" for label in by_count[:_NUM_CLASSES_SHOWN]]
    least = by_count[-1]
    rows = [
        ("labels", f"{known}, {len(labels)} occur"),
        ("most frequent", ", ".join(shown)),
        ("least frequent", f"{named(least)} {labels[least]}"),
    ]
    num_missing = stats.counts.num_samples - stats.counts.num_labelled
    return rows + ([("without label", str(num_missing))] if num_missing else [])


def _spread(histogram: Counter[int], edges: Sequence[float], *, digits: int) -> str:
    """Where the middle and nearly all of it lie, as far as the histogram's edges tell."""
    low, middle, high = (quantile_edge(histogram, edges, share) for share in (0.05, 0.5, 0.95))
    return f"5 % below {low:.{digits}f}, half below {middle:.{digits}f}, 95 % below {high:.{digits}f}"


def _some(number: int, sentences: Sequence[str]) -> str:
    return "none" if not number else f"{number}: {' '.join(sentences[:2])}{' ...' if number > 2 else ''}"
