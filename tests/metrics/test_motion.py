import subprocess
import sys

import numpy as np
import pytest

from s3dnerf.metrics import count_blinks, measure_blink_rate, measure_jitter


def test_steady_motion_does_not_jitter():
    steady = np.arange(30.0)[:, None, None] * np.array([2.0, -1.0]) + np.zeros((30, 5, 2))
    assert measure_jitter(steady) == pytest.approx(0.0, abs=1e-9)


def test_jitter_of_a_zigzag():
    # A point at 0, 1, 0, 1, ... has second differences of length 2.
    zigzag = np.zeros((10, 3, 3))
    zigzag[1::2, :, 0] = 1.0
    assert measure_jitter(zigzag) == pytest.approx(2.0)


def test_jitter_ignores_missing_frames():
    zigzag = np.zeros((10, 3, 2))
    zigzag[4] = np.nan
    assert measure_jitter(zigzag) == 0.0
    assert np.isnan(measure_jitter(zigzag[3:6]))


def test_blinks_are_counted_once_in_spite_of_noise_at_the_threshold():
    openness = np.ones((250, 2))
    openness[50:56] = [[0.7], [0.2], [0.6], [0.7], [0.3], [0.85]]
    openness[150:153] = 0.1
    openness[160] = np.nan
    assert count_blinks(openness) == 2
    assert measure_blink_rate(openness, 25) == pytest.approx(12.0)


def test_blinks_are_relative_to_the_openness_around_them():
    # The gaze sinks over eight seconds to 0.55 of the first openness; one blink at the top, one at the bottom.
    openness = np.linspace(1.0, 0.55, 200)
    openness[[30, 170]] *= 0.6
    assert count_blinks(openness) == 2
    assert count_blinks(np.linspace(1.0, 0.55, 200)) == 0
    assert count_blinks(0.7 * openness) == 2


def test_eyes_held_shut_for_a_second_blink_once():
    openness = np.ones(150)
    openness[60:85] = 0.15
    assert count_blinks(openness) == 1
    assert count_blinks(openness[::2], 12.5) == 1


def test_eyes_that_are_never_open_do_not_blink():
    assert count_blinks(np.zeros(50)) == 0


def test_no_frames_have_no_blinks():
    assert count_blinks(np.zeros(0)) == 0
    assert np.isnan(measure_blink_rate(np.zeros(0), 25))


def test_metrics_load_without_torch_and_opencv():
    program = (
        "import sys, s3dnerf.metrics\n"
        "heavy = {'torch', 'cv2', 's3dnerf.face'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
