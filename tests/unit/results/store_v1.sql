-- A store of schema 1, as `sqlite3 FILE .dump` gives it. Never regenerate: it stands for files people have.
PRAGMA application_id = 1886547814;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE environments (id TEXT PRIMARY KEY, key TEXT NOT NULL, content TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "environments" VALUES('485b527c57cc690e','08f5eaaf2e8c4bf6','{"cpu":{"title":"Example CPU","cores":8},"memory_bytes":68719476736,"limits":{"memory_bytes":null,"cores":null},"device":{"name":"cpu","kind":"cpu","title":"Example CPU","free_bytes":64424509440,"driver":null},"system":"Linux 6.1","python":"3.11.9","libraries":{"torch":"2.13.0+cpu"},"settings":{},"source":null}');
CREATE TABLE measurements (
        id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL REFERENCES runs, key TEXT NOT NULL,
        model TEXT NOT NULL, outcome TEXT NOT NULL, environment TEXT NOT NULL REFERENCES environments,
        content TEXT NOT NULL, steps BLOB NOT NULL
    );
INSERT INTO "measurements" VALUES(1,'261124-093015','8416e0dfe92f192d','gemma-3-270m','ok','485b527c57cc690e','{"case":{"model":"gemma-3-270m","model_id":"ab12","weights":"real","quant":"nf4","dtype":"fp32","device":"cpu","backend":"hf","path":"eager","context":128,"batch":1,"steps":4,"fill":"prefill","ubatch":2048,"seed":0},"outcome":"ok","samples":{"phase":["prefill","prefill","prefill","decode","decode","decode"],"seconds":[0.1,0.11,0.12000000000000001,0.4,0.41000000000000003,0.42000000000000004],"tokens":[128,128,128,4,4,4],"step_s":[0,0,0,4,4,4],"cpu_s":[0.2,0.2,0.2,null,null,null]},"memory":{"weights_bytes":1000000000,"cache_bytes":1048576},"cautions":[{"code":"contended","text":"another process took CPU time","help":"--reps 9"}],"started_at":"2026-11-24T09:30:15+00:00","asked":{"reps":3,"max_phase_s":60.0}}',X'9A9999999999B93F9A9999999999B93F9A9999999999B93F9A9999999999B93F9A9999999999B93F9A9999999999B93F9A9999999999B93F295C8FC2F528BC3F9A9999999999B93F9A9999999999B93F9A9999999999B93FB91E85EB51B8BE3F');
INSERT INTO "measurements" VALUES(2,'261124-093015','5b92108ba0f72499','gemma-3-270m','oom','485b527c57cc690e','{"case":{"model":"gemma-3-270m","model_id":"ab12","weights":"real","quant":"nf4","dtype":"fp32","device":"cpu","backend":"hf","path":"eager","context":256,"batch":1,"steps":4,"fill":"prefill","ubatch":2048,"seed":0},"outcome":"oom","reason":"no memory","samples":{},"memory":{"weights_bytes":1000000000,"cache_bytes":1048576},"cautions":[],"started_at":"2026-11-24T09:30:15+00:00","asked":{"reps":3,"max_phase_s":60.0}}',X'');
CREATE TABLE run_rows (
        run TEXT NOT NULL REFERENCES runs, measurement INTEGER NOT NULL REFERENCES measurements,
        UNIQUE (run, measurement)
    );
INSERT INTO "run_rows" VALUES('261124-093015',1);
INSERT INTO "run_rows" VALUES('261124-093015',2);
CREATE TABLE runs (
        id TEXT PRIMARY KEY, started_at TEXT NOT NULL, finished_at TEXT, how TEXT, argv TEXT NOT NULL,
        environment TEXT NOT NULL REFERENCES environments
    ) WITHOUT ROWID;
INSERT INTO "runs" VALUES('261124-093015','2026-11-24T09:30:15Z','2026-11-24T09:31:15Z','finished','["sweep"]','485b527c57cc690e');
CREATE INDEX measurements_by_key ON measurements (key, outcome);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('measurements',2);
COMMIT;
