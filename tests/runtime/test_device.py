"""The batch that `batch=auto` takes, from peaks that grow as a model's do."""

import pytest
import torch

from diffews.models.vae import in_chunks
from diffews.runtime.device import MOST_BATCH, auto_batch, exact_arithmetic, largest_batch

GB = 10**9


def peak_of(count: int, shots: int) -> int:
    """4 GB of weights; a picture in the VAE 1.5 GB, 8 at once at most; an episode's bank 0.3 GB."""
    encoded, decoded = count * (1 + 2 * shots), count
    return 4 * GB + int(1.5 * GB) * min(8, max(encoded, decoded)) + count * shots * 3 * GB // 10


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("room", [12, 20, 24, 48, 80])
def test_the_batch_fits_and_is_not_far_from_the_largest_that_does(shots, room):
    batch, why = largest_batch(lambda count: peak_of(count, shots), lambda: room * GB)
    if peak_of(1, shots) > room * GB:
        assert batch == 1  # which is what there is to try
        return
    assert peak_of(batch, shots) <= room * GB
    largest = max(n for n in range(1, MOST_BATCH + 1) if peak_of(n, shots) <= room * GB)
    assert batch >= 0.8 * largest
    assert str(batch) in why and "GB" in why


def test_what_does_not_fit_is_not_taken():
    def peak(count: int) -> int:
        if count > 4:
            raise torch.OutOfMemoryError
        return count

    assert largest_batch(peak, lambda: 10.0 * GB)[0] == 4


def test_one_that_does_not_fit_alone_is_an_error():
    def peak(count: int) -> int:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        largest_batch(peak, lambda: 10.0 * GB)


def test_a_cpu_is_not_measured():
    assert auto_batch(lambda count: 1 / 0, torch.device("cpu"), 64)[0] == 8
    assert auto_batch(lambda count: 1 / 0, torch.device("cpu"), 512)[0] == 1


def test_pictures_go_through_the_vae_in_chunks_and_in_order():
    pictures, sizes = torch.arange(20.0)[:, None], []

    def run(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        return part * 2

    assert torch.equal(in_chunks(run, pictures, 512 * 512), pictures * 2)
    assert sizes == [8, 8, 4]
    sizes.clear()
    in_chunks(run, pictures, 64 * 64)
    assert sizes == [20]


@pytest.mark.parametrize("tf32", [False, True])
def test_no_kernel_is_chosen_by_timing_it(tf32):
    exact_arithmetic(0, tf32)
    try:
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.allow_tf32 == tf32
    finally:
        exact_arithmetic(0)
