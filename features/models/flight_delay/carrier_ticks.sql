-- A carrier's departures over hours, a day and a week, and its overdue flights.
{{ config(meta={'seen_within_hours': 172}) }}
with events as (
  select carrier, available_at, dep_delay, if(dep_delay > 15, 1, 0) as late
  from {{ pinned('flight_delay_raw', 'flight_departures') }}
  where {{ seen_within() }}
),
{{ plans_of_the_entity(ticks=4) }},
{{ feature_grid('events', {'delay': 'dep_delay', 'late': 'late'}, marks='plans') }}
select
  {{ tick_columns() }},
  {{ grid_columns() }},
  late_so_far_4h as carrier_late_so_far_4h,
  overdue_share_4h as carrier_overdue_share_4h
from ticks left join plans using (carrier, hour)
