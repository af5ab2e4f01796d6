"""cloud-init's Ec2 datasource, told that it is on AWS: inside a container it has no DMI data to see that by.

Being "on AWS" is what makes it ask for IMDSv2 tokens, as on a real instance.
"""

from cloudinit import sources
from cloudinit.sources.DataSourceEc2 import CloudNames, DataSourceEc2


class DataSourceEc2Lab(DataSourceEc2):
    """The network-stage Ec2 datasource with the platform fixed."""

    def _get_cloud_name(self) -> str:
        return CloudNames.AWS


def get_datasource_list(depends: tuple[str, ...]) -> list[type[DataSourceEc2]]:
    """Called by cloud-init: the datasources of this module for a boot stage."""
    stages = [(DataSourceEc2Lab, (sources.DEP_FILESYSTEM, sources.DEP_NETWORK))]
    found: list[type[DataSourceEc2]] = sources.list_from_depends(depends, stages)
    return found
