"""Write the Grafana dashboard of k8s/components/monitoring: a panel for each metric that a training run serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).parent.parent / "k8s" / "components" / "monitoring" / "cotrain.json"
WIDTH, HEIGHT = 12, 8
CHOSEN = 'run=~"$run"'

PANELS = [
    ("Loss by task", f"cotrain_task_loss{{{CHOSEN}}}", "{{run}} {{task}}", "short"),
    ("Validation loss by task", f"cotrain_task_validation_loss{{{CHOSEN}}}", "{{run}} {{task}}", "short"),
    ("Weight by task", f"cotrain_task_weight{{{CHOSEN}}}", "{{run}} {{task}}", "short"),
    ("How task gradients agree (cosine)", f"cotrain_task_cosine{{{CHOSEN}}}", "{{run}} {{task}} and {{other}}", "short"),
    ("Cosine of the update with the exact one", f"cotrain_update_cosine{{{CHOSEN}}}", "{{run}}", "short"),
    ("Share of tasks that a step makes worse", f"cotrain_tasks_made_worse{{{CHOSEN}}}", "{{run}}", "percentunit"),
    ("Micro-batches the balancer found no weights for", f"cotrain_balancer_fallbacks_total{{{CHOSEN}}}", "{{run}}", "short"),
    ("Rows a second", f"cotrain_rows_per_second{{{CHOSEN}}}", "{{run}}", "short"),
    ("Steps a second", f"rate(cotrain_steps_total{{{CHOSEN}}}[5m])", "{{run}}", "short"),
    ("Rows seen", f"cotrain_rows_total{{{CHOSEN}}}", "{{run}}", "short"),
    ("Learning rate", f"cotrain_learning_rate{{{CHOSEN}}}", "{{run}}", "sci"),
    ("Seconds the last checkpoint took", f"cotrain_checkpoint_seconds{{{CHOSEN}}}", "{{run}}", "s"),
    ("Checkpoints", f"cotrain_checkpoints_total{{{CHOSEN}}}", "{{run}}", "short"),
]


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it; the data source is chosen there."""
    source = {"type": "prometheus", "uid": "${source}"}
    panels = [
        {
            "id": number + 1,
            "type": "timeseries",
            "title": title,
            "datasource": source,
            "gridPos": {"x": number % 2 * WIDTH, "y": number // 2 * HEIGHT, "w": WIDTH, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
            "targets": [{"refId": "A", "datasource": source, "expr": query, "legendFormat": legend}],
        }
        for number, (title, query, legend, unit) in enumerate(PANELS)
    ]
    choices = [
        {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        {
            "name": "run",
            "type": "query",
            "label": "Run",
            "datasource": source,
            "query": "label_values(cotrain_steps_total, run)",
            "refresh": 2,
            "multi": True,
            "includeAll": True,
        },
    ]
    return {
        "uid": "cotrain",
        "title": "cotrain",
        "tags": ["cotrain"],
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": choices},
        "panels": panels,
    }


if __name__ == "__main__":
    OUTPUT.write_text(json.dumps(dashboard(), indent=1) + "\n")
    print(OUTPUT)
