-- How a carrier's flights have departed, over hours, a day and a week.
{{ config(meta={'seen_within_hours': 168}) }}
with events as (
  select carrier, available_at, dep_delay, if(dep_delay > 15, 1, 0) as late
  from {{ pinned('flight_delay_raw', 'flight_departures') }}
  where {{ seen_within() }}
),
{{ window_ticks('carrier', 'events', {'delay': 'dep_delay', 'late': 'late'}, [3, 24, 168]) }}
select
  {{ tick_columns('carrier') }},
  delay_3h / nullif(n_3h, 0) as carrier_delay_3h,
  late_24h / nullif(n_24h, 0) as carrier_late_share_24h,
  delay_24h / nullif(n_24h, 0) as carrier_delay_24h,
  late_168h / nullif(n_168h, 0) as carrier_late_share_168h
from ticks
