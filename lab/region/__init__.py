"""The lab as a region of AWS to Pulumi's engine: its command line, a provider and a language host of ours."""
