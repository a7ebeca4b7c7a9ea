'use strict';
// Builds the addon, build/blockpruner.node: `node install/build.js`, or ensureBuilt() when the package is first used.
//
//   --force    build although the addon is up to date
//   --install  a missing tool is reported, but is no failure: npm install goes on, and the first use tries again
//
// BLOCKPRUNER_BUILD_FROM_SOURCE=1 in the environment compiles ggml too (CPU only, from llama.cpp's source) where
// node-llama-cpp has a prebuilt one.
//
// In build/: blockpruner.node, blockpruner.stamp (the hash of what the addon was built from; it is written last, so that an
// addon is complete if the hash is right), build.log, and cmake's own tree in cmake/, where node-gyp's files don't meet it.

const { spawn, spawnSync } = require('node:child_process');
const { createHash } = require('node:crypto');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');

const packageFolder = path.resolve(__dirname, '..');
const buildFolder = path.join(packageFolder, 'build');
const addonPath = path.join(buildFolder, 'blockpruner.node');
const cmakeFolder = path.join(buildFolder, 'cmake');
const logFile = path.join(buildFolder, 'build.log');
const windows = process.platform === 'win32';

/** A failure that the user can act on: its message says it all, a stack adds nothing. */
class BuildError extends Error {
    name = 'BuildError';

    constructor(message, code = 'BUILD_FAILED') {
        super(message);
        this.code = code; // BUILD_FAILED, BUILD_IMPOSSIBLE (a tool is missing, or the folder is read-only), BUILD_INTERRUPTED
    }
}

/** Builds the addon unless it is up to date. log receives progress, a line at a time; without it, stderr does. */
async function ensureBuilt({ log, force = false } = {}) {
    const fromSource = process.env.BLOCKPRUNER_BUILD_FROM_SOURCE === '1';
    await buildOnce({
        folder: buildFolder,
        stamp: sourceStamp(fromSource),
        log,
        force,
        build: (progress, stopped) => build({ fromSource, progress, stopped })
    });
}

// --- once -----------------------------------------------------------------------------------------------------------

/**
 * Runs build(), which leaves folder/blockpruner.node, unless the folder's stamp says that it was done. One process at a
 * time: others wait, and find it done. build gets a Progress and an AbortSignal.
 */
async function buildOnce({ folder, stamp, log, force = false, build }) {
    const addon = path.join(folder, 'blockpruner.node');
    const stampFile = path.join(folder, 'blockpruner.stamp');
    const isUpToDate = () =>
        fs.existsSync(addon) && fs.existsSync(stampFile) && fs.readFileSync(stampFile, 'utf8') === stamp;
    if (!force && isUpToDate()) {
        return;
    }
    const progress = new Progress(log);
    const stop = new AbortController();
    const unlock = await lock(folder, progress, stop);
    const stopOn = (signal) =>
        stop.abort(new BuildError(`the build of the addon was interrupted (${signal})`, 'BUILD_INTERRUPTED'));
    const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'];
    signals.forEach((signal) => process.on(signal, stopOn));
    try {
        if (!force && isUpToDate()) {
            return; // by the process that we waited for
        }
        fs.mkdirSync(folder, { recursive: true });
        await build(progress, stop.signal);
        stop.signal.throwIfAborted();
        fs.writeFileSync(`${stampFile}.new`, stamp);
        fs.renameSync(`${stampFile}.new`, stampFile);
        progress.phase('The addon is built');
    } catch (error) {
        throw readOnlyError(error, folder) ?? error;
    } finally {
        progress.end();
        signals.forEach((signal) => process.off(signal, stopOn));
        await unlock();
    }
}

/**
 * The lock is the folder `build.lock` beside `build`, which node-gyp empties. Its time is refreshed while its owner lives;
 * once it is 20 s old, its owner is dead and the lock is taken over.
 */
async function lock(folder, progress, stop) {
    const lockfile = require('proper-lockfile');
    const lost = () => stop.abort(new BuildError('another process has taken over the build of the addon; try again'));
    for (let waiting = false; ; waiting = true) {
        try {
            const release = await lockfile.lock(folder, {
                realpath: false,
                stale: 20_000,
                update: 5_000,
                onCompromised: lost
            });
            return () => release().catch(() => {}); // a lost lock is not ours to release
        } catch (error) {
            if (error.code !== 'ELOCKED') {
                throw readOnlyError(error, folder) ?? error;
            }
        }
        if (!waiting) {
            progress.phase('Another process is building the addon: waiting for it');
        }
        await sleep(500);
    }
}

function readOnlyError(error, folder) {
    return ['EACCES', 'EPERM', 'EROFS'].includes(error.code)
        ? new BuildError(
              `The addon of blockpruner must be built, and ${path.dirname(folder)} can't be written (${error.code}).\n` +
                  `Build it once as a user who can: node "${path.join(path.dirname(folder), 'install', 'build.js')}"`,
              'BUILD_IMPOSSIBLE'
          )
        : undefined;
}

/** The hash of all that the addon depends on. */
function sourceStamp(fromSource) {
    const packages = require('./packages.js');
    const llamaPackage = path.resolve(path.dirname(packages.bundle), '..', 'package.json');
    const hash = createHash('sha256');
    hash.update(
        JSON.stringify([
            JSON.parse(fs.readFileSync(llamaPackage, 'utf8')).version,
            process.platform,
            process.arch,
            // the addon finds ggml by this path
            fromSource || !packages.prebuiltFolder
                ? 'ggml from source'
                : path.relative(buildFolder, packages.prebuiltFolder)
        ])
    );
    const sources = fs
        .readdirSync(path.join(packageFolder, 'native'), { recursive: true })
        .filter((file) => /\.(cpp|h|patch)$/.test(file))
        .sort()
        .map((file) => path.join('native', file));
    for (const file of ['CMakeLists.txt', path.join('install', 'packages.js'), ...sources]) {
        hash.update(file).update(fs.readFileSync(path.join(packageFolder, file)));
    }
    return hash.digest('hex');
}

// --- the build ------------------------------------------------------------------------------------------------------

async function build({ fromSource, progress, stopped }) {
    checkTools();
    const unfinished = path.join(buildFolder, 'unfinished');
    if (fs.existsSync(unfinished)) {
        // a killed build may have left half an object file, and a compiler that is still at work
        fs.rmSync(cmakeFolder, { recursive: true, force: true, maxRetries: 5, retryDelay: 500 });
    }
    fs.writeFileSync(unfinished, '');
    fs.writeFileSync(logFile, '');
    await compile({ fromSource, progress, stopped }).finally(() => {
        // compilers clean up after themselves when they are stopped, other than on Windows
        if (!windows || !stopped.aborted) {
            fs.rmSync(unfinished);
        }
    });

    // An addon that doesn't load must not become the addon.
    const built = `${addonPath}.new`;
    fs.copyFileSync(path.join(cmakeFolder, 'blockpruner.node'), built);
    if (
        !(await run(
            process.execPath,
            ['-e', `process.dlopen(module, ${JSON.stringify(built)}); module.exports.devices()`],
            { progress, stopped }
        ))
    ) {
        throw failure('The addon was compiled, but does not load');
    }
    try {
        fs.renameSync(built, addonPath);
    } catch (error) {
        throw windows
            ? new BuildError(
                  `${addonPath} is in use: end the programs that use blockpruner, and try again (${error.code})`
              )
            : error;
    }
}

async function compile({ fromSource, progress, stopped }) {
    const cmakeJs = (command, ...options) =>
        run(
            process.execPath,
            [
                path.join(path.dirname(require.resolve('cmake-js/package.json')), 'bin', 'cmake-js'),
                command,
                '--directory',
                packageFolder,
                '--out',
                cmakeFolder,
                '--target',
                'blockpruner',
                ...options
            ],
            { progress, stopped }
        );
    const configure = () =>
        cmakeJs(
            'configure',
            `--CDBLOCKPRUNER_PREBUILT_GGML=${fromSource ? 'OFF' : 'ON'}`,
            `--CDNODE_EXECUTABLE=${process.execPath}`
        );

    progress.phase('Preparing the build of the addon');
    const isFresh = !fs.existsSync(cmakeFolder);
    if (!(await configure())) {
        // cmake's tree may be of a folder that has moved, or of a compiler that is gone
        fs.rmSync(cmakeFolder, { recursive: true, force: true });
        if (isFresh || !(await configure())) {
            throw failure('The build of the addon could not be prepared');
        }
    }
    progress.phase(`Compiling llama.cpp and the addon (${fromSource ? 'several minutes' : 'about two minutes'}, once)`);
    if (!(await cmakeJs('build', '--parallel', String(jobs())))) {
        throw failure('The addon could not be compiled');
    }
}

/** As many compilers as processors; one takes 300 MB. */
function jobs() {
    const memory = Math.min(os.totalmem(), process.constrainedMemory() || Infinity);
    return Math.max(1, Math.min(os.availableParallelism(), Math.floor(memory / 0.5e9)));
}

/** Runs a command, its output into the log and what it says of its progress to the user. Resolves to: it succeeded. */
function run(command, args, { progress, stopped }) {
    stopped.throwIfAborted();
    const env = { ...process.env };
    // those of a git hook, or of the make of node-gyp, that this may run in
    for (const name of [
        'GIT_DIR',
        'GIT_WORK_TREE',
        'GIT_INDEX_FILE',
        'MAKEFLAGS',
        'MAKEOVERRIDES',
        'MAKELEVEL',
        'MFLAGS'
    ]) {
        delete env[name];
    }
    return new Promise((resolve, reject) => {
        const log = fs.createWriteStream(logFile, { flags: 'a' });
        // a process group of its own, to stop cmake and the compilers with it
        const child = spawn(command, args, {
            cwd: packageFolder,
            env,
            detached: !windows,
            windowsHide: true,
            stdio: ['ignore', 'pipe', 'pipe']
        });
        const kill = () => {
            if (windows) {
                spawnSync('taskkill', ['/T', '/F', '/PID', String(child.pid)]);
            } else {
                try {
                    process.kill(-child.pid, 'SIGTERM');
                } catch {
                    // it has ended already
                }
            }
        };
        stopped.addEventListener('abort', kill);
        for (const stream of [child.stdout, child.stderr]) {
            stream.setEncoding('utf8');
            let rest = '';
            stream.on('data', (text) => {
                log.write(text);
                const lines = (rest + text).split('\n');
                rest = lines.pop();
                lines.forEach((line) => progress.output(line));
            });
        }
        child.on('error', reject);
        child.on('close', (code) => {
            stopped.removeEventListener('abort', kill);
            log.end(() => (stopped.aborted ? reject(stopped.reason) : resolve(code === 0)));
        });
    });
}

/** The message, and the part of the log that says why. */
function failure(message) {
    const lines = fs.readFileSync(logFile, 'utf8').trimEnd().split('\n');
    const first = lines.findIndex((line) => /^CMake Error|^FAILED|\berror\b ?[:A-Z]|^fatal:|^Error:/.test(line));
    const shown = first < 0 ? lines.slice(-12) : lines.slice(first, first + 12);
    return new BuildError(
        [`${message}:`, '', ...shown.map((line) => `    ${line.slice(0, 160)}`), '', `All of it: ${logFile}`].join('\n')
    );
}

// --- tools ----------------------------------------------------------------------------------------------------------

const tools = [
    {
        name: 'CMake 3.21 or newer',
        isThere: () => {
            const [, major, minor] = /version (\d+)\.(\d+)/.exec(output('cmake', '--version')) ?? [0, 0, 0];
            return major * 1000 + Number(minor) >= 3021;
        },
        debian: 'cmake',
        fedora: 'cmake',
        macos: 'brew install cmake',
        windows: 'winget install Kitware.CMake'
    },
    {
        name: 'a C++ compiler',
        isThere: windows
            ? hasVisualStudio
            : () =>
                  Boolean(output('g++', '--version') || output('clang++', '--version')) &&
                  Boolean(output('ninja', '--version') || output('make', '--version')),
        debian: 'build-essential',
        fedora: 'gcc-c++ make',
        macos: 'xcode-select --install',
        windows:
            'winget install Microsoft.VisualStudio.2022.BuildTools --override "--passive --add Microsoft.VisualStudio.Workload.VCTools --includeRecommended"'
    },
    {
        name: 'Git',
        isThere: () => Boolean(output('git', '--version')),
        debian: 'git',
        fedora: 'git',
        macos: 'xcode-select --install',
        windows: 'winget install Git.Git'
    }
];

function checkTools() {
    const missing = tools.filter((tool) => !tool.isThere());
    if (missing.length === 0) {
        return;
    }
    const all = (system) => [...new Set(missing.map((tool) => tool[system]))];
    throw new BuildError(
        [
            `blockpruner compiles its addon once, and this machine lacks ${missing.map((tool) => tool.name).join(', ')}. To install:`,
            `    Debian, Ubuntu:  sudo apt install ${all('debian').join(' ')}`,
            `    Fedora:          sudo dnf install ${all('fedora').join(' ')}`,
            `    macOS:           ${all('macos').join(' && ')}`,
            ...all('windows').map((command, i) => `    ${i === 0 ? 'Windows:' : '        '}         ${command}`)
        ].join('\n'),
        'BUILD_IMPOSSIBLE'
    );
}

/** What a program prints, '' if it is not there. */
function output(program, ...args) {
    const { status, stdout } = spawnSync(program, args, { encoding: 'utf8', windowsHide: true });
    return status === 0 ? stdout.trim() : '';
}

function hasVisualStudio() {
    const where = path.join(
        process.env['ProgramFiles(x86)'] ?? 'C:\\Program Files (x86)',
        'Microsoft Visual Studio',
        'Installer',
        'vswhere.exe'
    );
    return (
        output(
            where,
            '-products',
            '*',
            '-requiresAny',
            '-property',
            'installationPath',
            '-requires',
            'Microsoft.VisualStudio.Component.VC.Tools.x86.x64',
            'Microsoft.VisualStudio.Component.VC.Tools.ARM64'
        ) !== ''
    );
}

// --- progress -------------------------------------------------------------------------------------------------------

/** Tells what the build is at: on a terminal in one line that changes, else in a line for each phase and ten per cent. */
class Progress {
    #log;
    #terminal;
    #phase = '';
    #percent = 0;

    constructor(log) {
        this.#terminal = !log && process.stderr.isTTY;
        this.#log = log ?? ((line) => process.stderr.write(`${line}\n`));
    }

    phase(text) {
        this.#phase = text;
        this.#percent = 0;
        this.#show(text);
    }

    /** A line of cmake, or of ninja ("[12/53] Building") or make ("[ 12%] Building"), which it runs. */
    output(line) {
        if (line.includes('Unpacking llama.cpp')) {
            this.phase('Unpacking llama.cpp');
        }
        const [, done, total = 100] = /^\[\s*(\d+)(?:%|\/(\d+))\]/.exec(line) ?? [];
        const percent = Math.floor((100 * done) / total);
        if (percent >= this.#percent + (this.#terminal ? 1 : 10)) {
            this.#percent = percent;
            this.#show(`${this.#phase}: ${percent} %`);
        }
    }

    end() {
        if (this.#terminal && this.#phase) {
            process.stderr.write('\n');
        }
    }

    #show(text) {
        if (this.#terminal) {
            process.stderr.write(`\r\x1b[K${text.slice(0, (process.stderr.columns || 80) - 1)}`);
        } else {
            this.#log(text);
        }
    }
}

module.exports = { addonPath, ensureBuilt, buildOnce, BuildError };

if (require.main === module) {
    ensureBuilt({ force: process.argv.includes('--force') }).catch((error) => {
        console.error(error instanceof BuildError ? error.message : error);
        const goOn = error.code === 'BUILD_IMPOSSIBLE' && process.argv.includes('--install');
        if (goOn) {
            console.error('The addon will be built when blockpruner is first used.');
        }
        process.exitCode = goOn ? 0 : error.code === 'BUILD_INTERRUPTED' ? 130 : 1;
    });
}
