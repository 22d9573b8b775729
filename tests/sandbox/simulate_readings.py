"""The script that made cgm_proxy/sandbox/simulation/readings.csv.

To make the file again, use a separate environment, because simglucose is not a dependency of the project:

    pip install simglucose==0.2.11 setuptools==65.5.0 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1
    python tests/sandbox/simulate_readings.py > cgm_proxy/sandbox/simulation/readings.csv

simglucose (https://github.com/jxx123/simglucose, MIT, Jinyu Xie) is the UVa/Padova type 1 diabetes model of 2008. Its
virtual patient adult#004 is simulated for 15 days: three meals and some snacks a day, carbohydrates counted with errors,
late or missing boluses, basal rates that fit some days better than others, corrections of high values, and glucose tablets
against low ones. A sensor of the GuardianRT error model reads every 5 minutes. The first day is dropped, because the model
starts in a steady state. The rest is rounded and clipped to 40-400 mg/dL, as sensors report it.
"""

import random
from datetime import datetime, timedelta

from simglucose.actuator.pump import InsulinPump
from simglucose.controller.basal_bolus_ctrller import BBController
from simglucose.controller.base import Action
from simglucose.patient.t1dpatient import T1DPatient
from simglucose.sensor.cgm import CGMSensor
from simglucose.simulation.env import T1DSimEnv
from simglucose.simulation.scenario import CustomScenario

PATIENT = "adult#004"
SEED = 20240501
START = datetime(2024, 5, 1)
STEP = timedelta(minutes=5)
DAY, COUNT = 288, 4032
#: For each meal: usual hour and its spread, grams of carbohydrate and their spread, and how often it is eaten.
MEALS = (
    (7.5, 0.6, 45, 12, 0.97),
    (10.5, 0.5, 15, 5, 0.35),
    (12.75, 0.7, 65, 18, 1.0),
    (16.0, 0.7, 18, 6, 0.55),
    (19.25, 0.9, 75, 20, 1.0),
    (22.0, 0.5, 15, 5, 0.3),
)
HEADER = """\
# Two weeks of simulated glucose: 4,032 values in mg/dL, one every 5 minutes from midnight, 12 a line (an hour).
# Made with simglucose 0.2.11 (MIT, https://github.com/jxx123/simglucose): patient adult#004, sensor GuardianRT, seed
# 20240501, realistic meals and imperfect insulin; see tests/sandbox/simulate_readings.py. No person's data.
"""


def days_of_meals(rng):
    """Return random meals, [(time, grams)], and the carbohydrates for which a bolus is given, {time: grams}."""
    eaten, counted = [], {}
    for day in range(15):
        for hour, spread, grams, grams_spread, chance in MEALS:
            if rng.random() > chance:
                continue
            when = START + timedelta(days=day, minutes=5 * round(rng.gauss(hour, spread) * 12))
            amount = max(5, round(rng.gauss(grams, grams_spread)))
            eaten.append((when, amount))
            guess = amount * rng.gauss(0.97, 0.15)
            late = 0 if rng.random() < 0.7 else rng.choice((10, 20, 30))
            if rng.random() > 0.06:
                bolus_at = when + timedelta(minutes=late)
                counted[bolus_at] = counted.get(bolus_at, 0) + guess
    return eaten, counted


def simulate():
    """Yield the sensor's value every 5 minutes, in mg/dL, unrounded."""
    rng = random.Random(SEED)
    eaten, counted = days_of_meals(rng)
    fits = [rng.gauss(1.0, 0.09) for _ in range(60)]  # how the basal rate fits each quarter of a day
    sensor, pump = CGMSensor.withName("GuardianRT", seed=SEED), InsulinPump.withName("Insulet")
    body = T1DSimEnv(T1DPatient.withName(PATIENT), sensor, pump, CustomScenario(START, eaten))
    doses = BBController()
    correction_factor = doses.quest[doses.quest.Name == PATIENT].CF.item()
    state, treated_until = body.reset(), START
    for i in range(DAY + COUNT):
        now = START + i * STEP
        hour = now.hour + now.minute / 60
        glucose = state.observation.CGM
        dose = doses.policy(
            state.observation, 0, done=False, sample_time=5, patient_name=PATIENT, meal=counted.get(now, 0) / 5
        )
        time_of_day = 0.85 if 4 <= hour < 9 else 1.05 if 13 <= hour < 18 else 1.0
        basal = 0 if glucose < 70 else dose.basal * fits[min(i // 72, 59)] * time_of_day
        if glucose < 66 and now > treated_until:
            eaten.append((now + timedelta(minutes=rng.choice((5, 10, 20))), 16))
            treated_until = now + timedelta(minutes=40)
        corrects = hour % 4 < 0.05 and 7 < hour < 23 and glucose > 220
        correction = (glucose - 150) / correction_factor / 5 * 0.7 if corrects else 0
        state = body.step(Action(basal=basal, bolus=dose.bolus + correction))
        yield state.observation.CGM


def main():
    """Print the data file."""
    values = [min(400, max(40, round(value))) for value in simulate()][DAY:]
    print(HEADER, end="")
    for hour in range(0, COUNT, 12):
        print(",".join(map(str, values[hour : hour + 12])))


if __name__ == "__main__":
    main()
