-- Departures from an airport and its overdue flights, which reflect weather and congestion.
{{ config(meta={'seen_within_hours': 173}) }}
with events as (
  select origin, available_at, dep_delay, if(dep_delay > 15, 1, 0) as late
  from {{ pinned('flight_delay_raw', 'flight_departures') }}
  where {{ seen_within() }}
),
{{ planned_flights(before=3, after=5) }},
plan_ticks as (
  select
    origin,
    hour,
    cast(count_if(age between 0 and 4 and waiting) as double) as overdue_5h,
    cast(count_if(age < 0) as double) as scheduled_3h,
    avg(if(age between 0 and 1, so_far, null)) as so_far_2h,
    avg(if(age between 0 and 1, if(waiting, 1, 0), null)) as overdue_share_2h,
    count_if(age between 0 and 1) as flights_2h,
    count_if(age between 0 and 1 and so_far > 15) as late_so_far_2h
  from planned
  group by origin, hour
),
plans as (
  select
    *,
    sum(late_so_far_2h) over (partition by hour) / nullif(sum(flights_2h) over (partition by hour), 0) as nearby_late_2h
  from plan_ticks
),
{{ feature_grid('events', {'delay': 'dep_delay', 'late': 'late'}, marks='plans') }}
select
  {{ tick_columns() }},
  {{ grid_columns() }},
  coalesce(overdue_5h, 0) as origin_overdue_5h,
  coalesce(scheduled_3h, 0) as origin_scheduled_3h,
  so_far_2h as origin_so_far_2h,
  overdue_share_2h as origin_overdue_share_2h,
  nearby_late_2h as nearby_late_share_2h
from ticks left join plans using (origin, hour)
