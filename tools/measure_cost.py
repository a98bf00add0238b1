#!/usr/bin/env python3
"""Tell what configs cost: parameters, multiply-accumulates, latency and memory, training steps by part, device-hours.

    python tools/measure_cost.py configs/aligntok_dinov2_f16d32.py --meta --encoders ldm_cnn
    python tools/measure_cost.py configs/aligntok_dinov2_f16d32.py --devices 8 --cfg-options data_root=...
    python tools/measure_cost.py configs/aligntok_dinov2_f16d32.py configs/aligntok_mae_f16d32.py --no-training
    python tools/measure_cost.py scaling configs/aligntok_dinov2_f16d32.py --step-seconds 0.11 0.15 0.10

Weights are random; images too, unless data_root is set. docs/cost.md says what each column is.
"""

from aligntok.cli import measure_cost
from aligntok.ends import leave

if __name__ == "__main__":
    leave(measure_cost)
