import numpy as np
import pytest

from s3dnerf.metrics import compute_mfcc, measure_lse


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(60, 8))


@pytest.mark.parametrize("late", [0, 4, -7])
def test_an_offset_is_found(rows, late):
    # What is heard at frame k is seen at frame k + late.
    scores = measure_lse(np.roll(rows, late, axis=0), rows)
    assert scores.offset == late
    assert scores.confidence > 1.0


def test_scores_equal_a_slow_reference(rows):
    sounds = rows + np.random.default_rng(1).normal(size=rows.shape)
    scores = measure_lse(rows, sounds)
    means = []
    for shift in range(-15, 16):
        distances = []
        for frame in range(60):
            other = sounds[frame + shift] if 0 <= frame + shift < 60 else np.zeros(8)
            distances.append(np.sqrt(sum((a - b + 1e-6) ** 2 for a, b in zip(rows[frame], other, strict=True))))
        means.append(np.mean(distances))
    assert scores.distance == pytest.approx(min(means))
    assert scores.confidence == pytest.approx(sorted(means)[15] - min(means))
    assert scores.offset == -(int(np.argmin(means)) - 15)


def test_distances_by_hand():
    # Lips and sound are 5 apart in step. Moved by more than a frame, lips of length 10 meet zeros.
    lips = np.array([[10.0, 0.0]])
    scores = measure_lse(lips, np.array([[7.0, 4.0]]))
    assert scores.distance == pytest.approx(5.0, abs=1e-5)
    assert scores.confidence == pytest.approx(5.0, abs=1e-5)
    assert scores.offset == 0


def test_no_rows_have_no_scores_and_unequal_ones_are_refused(rows):
    nothing = measure_lse(rows[:0], rows[:0])
    assert np.isnan([nothing.distance, nothing.confidence]).all()
    with pytest.raises(ValueError, match="equal shapes"):
        measure_lse(rows, rows[:-1])


@pytest.mark.parametrize("samples", [100, 400, 401, 3200, 4000])
def test_cepstra_equal_a_slow_reference(samples):
    speech = np.random.default_rng(samples).uniform(-1, 1, samples) * np.sin(np.arange(samples) * 0.02)
    np.testing.assert_allclose(compute_mfcc(speech), compute_slowly(speech), rtol=1e-7, atol=1e-7)


def test_five_frames_have_twenty_cepstra_from_the_sixth_frame_on():
    assert compute_mfcc(np.zeros(640 * 6)).shape == (23, 13)


def test_silence_has_finite_cepstra():
    cepstra = compute_mfcc(np.zeros(1000))
    assert np.isfinite(cepstra).all()
    np.testing.assert_allclose(cepstra[:, 0], np.log(np.finfo(float).eps))
    with pytest.raises(ValueError, match="expected speech"):
        compute_mfcc(np.zeros(0))


def compute_slowly(speech: np.ndarray) -> np.ndarray:
    """MFCC as python_speech_features defines it, window by window, with sums for transforms."""
    pcm = [max(-32768, min(32767, round(float(value) * 32768))) for value in speech]
    raised = [float(pcm[0]), *(pcm[n] - 0.97 * pcm[n - 1] for n in range(1, len(pcm)))]
    count = 1 if len(pcm) <= 400 else 1 + int(np.ceil((len(pcm) - 400) / 160))
    raised += [0.0] * (400 + 160 * count)
    mel = [k * 2595 * np.log10(1 + 8000 / 700) / 27 for k in range(28)]
    corners = [int(np.floor(513 * 700 * (10 ** (m / 2595) - 1) / 16000)) for m in mel]
    wave = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(400)) / 512)
    rows = []
    for start in range(0, 160 * count, 160):
        power = np.abs(wave @ np.array(raised[start : start + 400])) ** 2 / 512
        logs = []
        for low, peak, high in zip(corners, corners[1:], corners[2:], strict=False):
            energy = sum(power[k] * (k - low) / (peak - low) for k in range(low, peak))
            energy += sum(power[k] * (high - k) / (high - peak) for k in range(peak, high))
            logs.append(np.log(energy))
        row = []
        for k in range(13):
            value = sum(log * np.cos(np.pi * k * (2 * n + 1) / 52) for n, log in enumerate(logs))
            value *= np.sqrt((1 if k == 0 else 2) / 26)
            row.append(value * (1 + 11 * np.sin(np.pi * k / 22)))
        row[0] = np.log(power.sum())
        rows.append(row)
    return np.array(rows)
