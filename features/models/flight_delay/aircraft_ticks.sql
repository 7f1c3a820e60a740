-- An aircraft's departures: a late aircraft is often late again that day, more so with little time between flights.
{# 168 hours of window, up to 48 hours of delay, 168 hours of schedules published ahead #}
{{ config(meta={'seen_within_hours': 384}) }}
with legs as (
  select
    flight_id,
    lead(struct(scheduled_departure, available_at)) over (
      partition by tailnum order by scheduled_departure, flight_id
    ) as next
  from {{ pinned('flight_delay_raw', 'flight_schedules') }}
  where {{ seen_within() }} and available_at < {{ as_of() }} and tailnum is not null
),
departures as (
  select flight_id, tailnum, available_at, dep_delay, if(dep_delay > 15, 1, 0) as late,
    unix_seconds(scheduled_arrival) / 60 as lands,
    (unix_seconds(scheduled_arrival) - unix_seconds(scheduled_departure)) / 60 as block
  from {{ pinned('flight_delay_raw', 'flight_departures') }}
  where {{ seen_within() }}
),
events as (
  -- minutes to spare to fly there and back before its next departure, at most a day; null when that is unknown
  select tailnum, departures.available_at, dep_delay, late,
    if(
      next.available_at < departures.available_at,
      greatest(-600, least(1440, unix_seconds(next.scheduled_departure) / 60 - lands - block - dep_delay)),
      null
    ) as spare
  from departures left join legs using (flight_id)
),
{{ feature_grid('events', {'delay': 'dep_delay', 'late': 'late'}, newest={'spare': 'spare'}) }}
select
  {{ tick_columns() }},
  {{ grid_columns() }},
  spare as aircraft_spare_minutes,
  cast(planes.seats as double) as aircraft_seats,
  cast(year(event_timestamp) - planes.year_built as double) as aircraft_age_years
from ticks
left join {{ pinned('flight_delay_raw', 'planes') }} as planes using (tailnum)
