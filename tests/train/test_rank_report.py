"""What ranks share at a report: everything arrives as it was, and counters add up."""

from vitscale.train.rank_report import RankReport, share, total_io


def test_one_rank_shares_with_itself() -> None:
    mine = RankReport(lost=[{"sample_id": 7}], io={"bytes_read": 10}, own_seconds=None)
    assert share(mine) == [mine]


def test_counters_of_all_ranks_add_up() -> None:
    reports = [
        RankReport(lost=[], io={"bytes_read": 10, "reads": 2}, own_seconds=1.5),
        RankReport(lost=[], io={"bytes_read": 5, "retries": 0}, own_seconds=None),
    ]
    assert total_io(reports) == {"bytes_read": 15, "reads": 2, "retries": 0}
    assert total_io([]) == {}
