// The action's two steps in one file without dependencies: the first run restores, the second, after the job, saves. They
// know each other by the state that the runner keeps between them ($GITHUB_STATE, then $STATE_...).
'use strict';

const { spawnSync } = require('node:child_process');
const { randomUUID } = require('node:crypto');
const { appendFileSync } = require('node:fs');
const path = require('node:path');

const input = (name) => (process.env[`INPUT_${name.toUpperCase()}`] ?? '').trim();
const isTrue = (name) => ['true', 'True', 'TRUE'].includes(input(name));
const lines = (text) => text.split('\n').map((line) => line.trim()).filter(Boolean);

/** What the input path says: a line is a comment (#), what a save leaves out (!), or a path. */
function pathsOf(text) {
  const said = lines(text).filter((line) => !line.startsWith('#'));
  return {
    paths: said.filter((line) => !line.startsWith('!')),
    excludes: said.filter((line) => line.startsWith('!')).map((line) => line.slice(1).trim()),
  };
}

/** Append to one of the runner's files, between lines of a delimiter that no value can hold. */
function tell(file, values) {
  for (const [name, value] of Object.entries(values)) {
    const delimiter = `cachekit-${randomUUID()}`;
    appendFileSync(process.env[file], `${name}<<${delimiter}\n${value}\n${delimiter}\n`);
  }
}

/** Run a program, what it says on stderr shown as it comes; return its stdout, or end with its exit code. */
function run(command, args, { allowed = [0] } = {}) {
  const done = spawnSync(command, args, { stdio: ['ignore', 'pipe', 'inherit'], encoding: 'utf8', maxBuffer: 1 << 28 });
  if (done.error) throw done.error;
  if (!allowed.includes(done.status)) {
    process.exitCode = done.status ?? 1; // null: ended by a signal
    return null;
  }
  return { code: done.status, stdout: done.stdout };
}

function restore() {
  const installed = run('bash', [path.join(__dirname, 'install.sh')]);
  if (installed === null) return;
  const command = path.join(installed.stdout.trim(), 'cachekit');

  // What the save needs is kept now: a key that is computed from files could be another one after the build.
  const wanted = { command, key: input('key'), path: input('path'), store: input('store') };
  const outputs = { 'cache-hit': false, 'cache-primary-key': wanted.key, 'cache-matched-key': '', status: 'error' };
  const args = ['restore', '--json', '--key', wanted.key];
  if (wanted.store) args.push('--store', wanted.store);
  for (const prefix of lines(input('restore-keys'))) args.push('--restore-key', prefix);
  if (isTrue('lookup-only')) args.push('--lookup-only');
  // Without a cache the job is slower, no more; unless it shall not go on without one.
  args.push(isTrue('fail-on-cache-miss') ? '--fail-on-miss' : '--soft-fail');
  if (isTrue('enableCrossOsArchive')) args.push('--any-platform');
  const { paths } = pathsOf(wanted.path);
  // Without a path cachekit would restore whatever the entry holds below the current directory.
  if (paths.length === 0) {
    console.error('::error title=cachekit::the input path names nothing');
    process.exitCode = 2;
    return;
  }
  args.push('--', ...paths);

  const done = run(command, args, { allowed: [0, 3] }); // 3: a miss, and that is to fail
  if (done !== null) {
    const report = JSON.parse(done.stdout);
    if (report.error === undefined) {
      outputs['cache-hit'] = report.cache_hit;
      outputs['cache-matched-key'] = report.matched_key ?? '';
      outputs.status = report.status;
    }
    process.exitCode = done.code;
  }
  tell('GITHUB_OUTPUT', outputs);
  tell('GITHUB_STATE', { ...wanted, restored: 'true', exact: outputs['cache-hit'] });
}

function save(wanted) {
  if (wanted.exact === 'true') {
    console.log(`cachekit: ${wanted.key} was an exact hit: there is nothing to save`);
    return;
  }
  // A cache that cannot be saved (no space, a file that keeps changing) is a warning: the build itself was fine.
  const args = ['save', '--json', '--soft-fail', '--key', wanted.key];
  if (wanted.store) args.push('--store', wanted.store);
  const { paths, excludes } = pathsOf(wanted.path);
  for (const pattern of excludes) args.push('--exclude', pattern);
  run(wanted.command, [...args, '--', ...paths]);
}

const state = (name) => process.env[`STATE_${name}`] ?? '';
if (state('begun') === '') {
  tell('GITHUB_STATE', { begun: 'true' });
  restore();
} else if (state('restored') === 'true') {
  // Else the restore failed, and the job went on (continue-on-error): there is no command to save with.
  save({ command: state('command'), key: state('key'), path: state('path'), store: state('store'), exact: state('exact') });
}
