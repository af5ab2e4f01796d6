"""The monthly budget: AWS's word by mail when the cluster costs more than it should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pulumi
import pulumi_aws as aws

from components.component import Component
from components.tags import COST_TAG, of_stack

# Percent of the budget: of what has been spent, and of what AWS thinks the month will come to, for which it needs some
# five weeks of data: https://docs.aws.amazon.com/cost-management/latest/userguide/budgets-best-practices.html
_NOTIFICATIONS: Final = (("ACTUAL", 80), ("ACTUAL", 100), ("FORECASTED", 100))


@dataclass(frozen=True)
class BudgetArgs:
    """How much a month may cost, in USD, and who is told."""

    usd: int
    email: str


class Budget(Component):
    """A budget over all that carries the stack's COST_TAG; AWS sees that only once it is a cost allocation tag.

    AWS Budgets sends its mails itself, at once to everybody that it names, and looks a few times a day.
    """

    def __init__(self, name: str, args: BudgetArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, opts)
        value = of_stack(pulumi.get_stack())[COST_TAG]
        budget = aws.budgets.Budget(
            self.named("month"),
            budget_type="COST",
            limit_amount=str(args.usd),
            limit_unit="USD",
            time_unit="MONTHLY",
            # Or nobody would be told before credits that pay for the cluster run out.
            cost_types=aws.budgets.BudgetCostTypesArgs(include_credit=False, include_refund=False),
            cost_filters=[
                aws.budgets.BudgetCostFilterArgs(name="TagKeyValue", values=[f"user:{COST_TAG}${value}"])
            ],
            notifications=[
                aws.budgets.BudgetNotificationArgs(
                    comparison_operator="GREATER_THAN",
                    notification_type=kind,
                    threshold=percent,
                    threshold_type="PERCENTAGE",
                    subscriber_email_addresses=[args.email],
                )
                for kind, percent in _NOTIFICATIONS
            ],
            tags=self.tags("month"),
            opts=self.child(),
        )
        self.register_outputs({"name": budget.name})
