"""The fleet follows the queue: the scaling policies and the alarms that call them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pulumi
import pulumi_aws as aws

from components import facts
from components.capacity import steps_out
from components.component import Component
from components.tags import cluster_name

_ONE_TASK: Final = 1  # the threshold that the steps out count from
# A calculation has phases without tasks, shorter than this; a worker that is gone costs a boot to have back.
IDLE_MINUTES: Final = 5


@dataclass(frozen=True)
class ScalingArgs:
    """The group to scale between `minimum` and `maximum` workers, which differ.

    `processes` is the number of tasks that each worker runs at once, `warmup_seconds` the time from a
    worker's power-on to its first task.
    """

    group_name: pulumi.Input[str]
    minimum: int
    maximum: int
    processes: int
    warmup_seconds: int


class Scaling(Component):
    """Workers for waiting tasks at once, and none but the minimum when nothing has run or waited for minutes.

    Both policies are step policies: AWS holds back simple ones as long as any worker drains. An alarm calls
    its policy when it goes off and then once a minute; workers that are still warming up count as added, so
    that tasks which wait for them do not ask for more. What the master does not publish neither adds nor
    removes workers: when it is away, the fleet stays as it is.
    """

    alarm_arns: list[pulumi.Output[str]]

    def __init__(self, name: str, args: ScalingArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, opts)
        self.alarm_arns = []
        out = aws.autoscaling.Policy(
            self.named("out"),
            autoscaling_group_name=args.group_name,
            policy_type="StepScaling",
            adjustment_type="ChangeInCapacity",
            metric_aggregation_type="Maximum",
            estimated_instance_warmup=args.warmup_seconds,
            step_adjustments=[
                aws.autoscaling.PolicyStepAdjustmentArgs(
                    metric_interval_lower_bound=str(step.at_least - _ONE_TASK),
                    metric_interval_upper_bound=None if step.below is None else str(step.below - _ONE_TASK),
                    scaling_adjustment=step.workers,
                )
                for step in steps_out(args.processes, args.maximum - args.minimum)
            ],
            opts=self.child(),
        )
        self._alarm(
            "out",
            out,
            metric="TasksWaiting",
            comparison="GreaterThanOrEqualToThreshold",
            threshold=_ONE_TASK,
            period=facts.METRICS_SECONDS,
            periods=1,
            description="Tasks wait in the queue",
        )
        back = aws.autoscaling.Policy(
            self.named("in"),
            autoscaling_group_name=args.group_name,
            policy_type="StepScaling",
            adjustment_type="ExactCapacity",
            metric_aggregation_type="Maximum",
            step_adjustments=[
                aws.autoscaling.PolicyStepAdjustmentArgs(
                    metric_interval_upper_bound="0", scaling_adjustment=args.minimum
                )
            ],
            opts=self.child(),
        )
        self._alarm(
            "in",
            back,
            metric="TasksOutstanding",
            comparison="LessThanOrEqualToThreshold",
            threshold=0,
            period=facts.METRICS_IDLE_SECONDS,
            periods=IDLE_MINUTES * 60 // facts.METRICS_IDLE_SECONDS,
            description=f"No task has waited or run for {IDLE_MINUTES} minutes",
        )
        self.register_outputs({"policies": [out.name, back.name]})

    def _alarm(
        self,
        child: str,
        policy: aws.autoscaling.Policy,
        *,
        metric: str,
        comparison: str,
        threshold: int,
        period: int,
        periods: int,
        description: str,
    ) -> None:
        """Call `policy` when the largest value of the metric in each of the last `periods` compares so."""
        cluster = cluster_name(pulumi.get_stack())
        alarm = aws.cloudwatch.MetricAlarm(
            self.named(child),
            alarm_description=f"{cluster}: {description}",
            namespace=facts.METRICS_NAMESPACE,
            metric_name=metric,
            dimensions={facts.METRICS_DIMENSION: cluster},
            statistic="Maximum",
            comparison_operator=comparison,
            threshold=threshold,
            period=period,
            evaluation_periods=periods,
            datapoints_to_alarm=periods,
            treat_missing_data="notBreaching",
            alarm_actions=[policy.arn],
            tags=self.tags(child),
            opts=self.child(),
        )
        self.alarm_arns.append(alarm.arn)
