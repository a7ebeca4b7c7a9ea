'use strict';
// Builds the addon, build/blockpruner.node: `node install/build.js`, or ensureBuilt() when the package is first used.
//
//   --force    build although the addon is up to date
//   --prebuilt make the addon that the package carries, see prebuilt.js
//   --install  report a missing tool, but end as if nothing were wrong, so that npm install goes on; the first use of
//              the package tries again
//
// With BLOCKPRUNER_BUILD_FROM_SOURCE=1 in the environment, ggml is compiled too (from llama.cpp's source, for the CPU
// only), even where node-llama-cpp has a prebuilt one. With BLOCKPRUNER_BUILD_FOLDER=FOLDER, another folder takes the
// place of build/: where the package's own can't be written, or for an addon that is compiled in another way.
//
// build/ holds:
//
//   blockpruner.node   the addon
//   blockpruner.stamp  a hash of what it was built from, written last: an addon beside the right hash is complete
//   build.log          what the last build printed
//   cuda/              the CUDA backend, where it was built for the GPUs of this computer, with its stamp and log
//   cmake/             cmake's files, in a folder of their own, where they don't meet node-gyp's

const { spawn, spawnSync } = require('node:child_process');
const { createHash } = require('node:crypto');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { BuildError, buildOnce, isBuilt } = require('./once.js');
const { copyPrebuilt, hasPrebuilt, placeToBuildFor, savePrebuilt } = require('./prebuilt.js');
const { checkTools } = require('./tools.js');

const packageFolder = path.resolve(__dirname, '..');
const buildFolder = path.resolve(process.env.BLOCKPRUNER_BUILD_FOLDER || path.join(packageFolder, 'build'));
const addonPath = path.join(buildFolder, 'blockpruner.node');
const cmakeFolder = path.join(buildFolder, 'cmake');
const logFile = path.join(buildFolder, 'build.log');
const windows = process.platform === 'win32';

/** Builds the addon unless it is up to date. log receives the progress, a line at a time; without it, stderr does. */
async function ensureBuilt({ log, force = false } = {}) {
    const packages = require('./packages.js');
    const fromSource = process.env.BLOCKPRUNER_BUILD_FROM_SOURCE === '1';
    const usesPrebuilt = packages.prebuiltFolder !== '' && !fromSource;
    await buildOnce({
        folder: buildFolder,
        // the addon finds ggml by this path
        stamp: sourceStamp(packages, usesPrebuilt ? placeOf(packages) : 'ggml from source'),
        log,
        force,
        build: async (progress, stopped) => {
            if (usesPrebuilt && (await install(packages, progress, stopped))) {
                return;
            }
            if (packages.prebuiltFolder === '' && !fromSource) {
                progress.note(
                    `${packages.prebuiltPackage} is not installed: ` +
                        "ggml is compiled too, and pruned files can't be verified"
                );
            }
            await build({ usesPrebuilt, progress, stopped });
            await putInPlace(path.join(cmakeFolder, 'blockpruner.node'), progress, stopped);
        }
    });
}

/** Where ggml is, seen from the addon. */
function placeOf({ prebuiltFolder }) {
    return path.relative(buildFolder, prebuiltFolder);
}

/**
 * Installs the addon that the package carries. A repository, which has tests, compiles its own.
 * @returns whether there is one that runs here
 */
async function install(packages, progress, stopped) {
    const isRepository = fs.existsSync(path.join(packageFolder, 'test'));
    if (isRepository || !hasPrebuilt(sourceStamp(packages, placeToBuildFor(packages)))) {
        return false;
    }
    const copy = path.join(buildFolder, 'prebuilt.node');
    fs.writeFileSync(logFile, '');
    try {
        if (!copyPrebuilt(copy, placeOf(packages), packages)) {
            return false;
        }
        await putInPlace(copy, progress, stopped);
        return true;
    } catch {
        stopped.throwIfAborted();
        progress.note(`The addon of the package doesn't run here (${logFile} says why): it is compiled`);
        return false;
    } finally {
        fs.rmSync(copy, { force: true });
    }
}

/** Makes the addon that the package carries. */
async function prebuild() {
    const packages = require('./packages.js');
    if (windows || packages.prebuiltFolder === '') {
        const where = `on Linux and macOS, with ${packages.prebuiltPackage} installed`;
        throw new BuildError(`the addon can be made for the package ${where}`);
    }
    await ensureBuilt();
    const stopped = new AbortController().signal;
    const progress = { phase: (text) => console.log(text), output: () => {}, note: console.log };
    const place = placeToBuildFor(packages);
    await build({ usesPrebuilt: true, place, progress, stopped });
    const saved = savePrebuilt(path.join(cmakeFolder, 'blockpruner.node'), sourceStamp(packages, place));
    console.log(saved);
}

/** The backends that are built where they are asked for, from the source that the addon was built from. */
const extraBackends = {
    // The prebuilt one has machine code for some cards only, and what it has for others needs a newer driver than they
    // may have.
    cuda: {
        title: 'CUDA backend',
        variant: () => process.env.BLOCKPRUNER_CUDA_ARCHITECTURES || architecturesHere(),
        takes: (architectures) => ` for ${architectures} (an hour on two cores, minutes on many)`,
        options: (architectures) => ({
            CMAKE_CUDA_ARCHITECTURES: architectures,
            GGML_CUDA: 'ON',
            GGML_CUDA_GRAPHS: 'ON'
        }),
        check: () => {
            if (spawnSync('nvcc', ['--version']).status !== 0) {
                throw new BuildError(
                    'nvcc was not found: install the CUDA toolkit, of the version that nvidia-smi shows or older, ' +
                        'and put its bin folder into PATH',
                    'BUILD_IMPOSSIBLE'
                );
            }
        }
    },
    // Computes on other computers. There is no prebuilt one.
    rpc: {
        title: 'RPC backend',
        variant: () => '',
        takes: () => ' (a minute)',
        options: () => ({ GGML_RPC: 'ON', GGML_RPC_RDMA: 'OFF' }),
        check: () => {}
    }
};

const folderOf = (kind) => path.join(buildFolder, kind);
const libraryOf = (kind) => (windows ? `ggml-${kind}.dll` : `libggml-${kind}.so`);

/**
 * Builds a backend.
 * @param kind `cuda`, for the GPUs of this computer, or `rpc`
 * @returns the file of its library
 */
async function buildBackend(kind, { log } = {}) {
    await ensureBuilt({ log });
    const { title, variant, takes, options, check } = extraBackends[kind];
    check();
    const chosen = variant();
    const folder = folderOf(kind);
    const library = libraryOf(kind);
    await buildOnce({
        folder,
        product: library,
        name: `the ${title}`,
        stamp: `${llamaRelease()} ${chosen}`,
        log,
        build: async (progress, stopped) => {
            const logFile = path.join(folder, 'build.log');
            const work = path.join(folder, 'cmake');
            fs.writeFileSync(logFile, '');
            const cmake = (...args) => run('cmake', args, { progress, stopped, logFile });
            progress.phase(`Preparing the build of the ${title}`);
            const all = {
                CMAKE_BUILD_TYPE: 'Release',
                CMAKE_PLATFORM_NO_VERSIONED_SONAME: 'ON', // it must find the prebuilt ggml-base, which has no version
                BUILD_SHARED_LIBS: 'ON',
                GGML_BACKEND_DL: 'ON',
                GGML_BUILD_EXAMPLES: 'OFF',
                GGML_BUILD_TESTS: 'OFF',
                GGML_CPU: 'OFF',
                GGML_NATIVE: 'OFF',
                ...options(chosen)
            };
            const defines = Object.entries(all).map(([name, value]) => `-D${name}=${value}`);
            const source = path.join(cmakeFolder, 'llama.cpp', 'ggml');
            if (!fs.existsSync(source)) {
                checkTools(); // the addon came with the package, so that nothing was unpacked yet
                await prepare({ usesPrebuilt: true, progress, stopped });
            }
            fs.appendFileSync(path.join(source, 'ggml.pc.in'), ''); // the bundle lacks it, and CMake wants it
            if (!(await cmake('-S', source, '-B', work, ...defines))) {
                throw failure(`The build of the ${title} could not be prepared`, logFile);
            }
            progress.phase(`Compiling the ${title}${takes(chosen)}`);
            const parallel = ['--config', 'Release', '--parallel', String(jobs())];
            if (!(await cmake('--build', work, '--target', `ggml-${kind}`, ...parallel))) {
                throw failure(`The ${title} could not be compiled`, logFile);
            }
            const built = [path.join('bin', 'Release'), 'bin'].map((bin) => path.join(work, bin, library));
            fs.copyFileSync(
                built.find((file) => fs.existsSync(file)),
                path.join(folder, library)
            );
        }
    });
    return builtBackend(kind);
}

/**
 * The library of a backend that was built here; '' if none was, or for another release of llama.cpp. Whether it is for
 * the GPUs that are here now shows when they are tried.
 * @param kind `cuda` or `rpc`
 */
function builtBackend(kind) {
    const isOurs = (stamp) => stamp.startsWith(`${llamaRelease()} `);
    return isBuilt(folderOf(kind), libraryOf(kind), isOurs) ? path.join(folderOf(kind), libraryOf(kind)) : '';
}

/** What all that is built here depends on. */
function llamaRelease() {
    return JSON.stringify([llamaVersion(require('./packages.js')), process.platform, process.arch]);
}

/** The compute capabilities of the GPUs here, as CMake wants them: 90 for 9.0. */
function architecturesHere() {
    const { stdout } = spawnSync('nvidia-smi', ['--query-gpu=compute_cap', '--format=csv,noheader']);
    const found = [...new Set(String(stdout ?? '').match(/\d+\.\d/g) ?? [])];
    if (found.length === 0) {
        throw new BuildError(
            'nvidia-smi shows no GPU to build for; BLOCKPRUNER_CUDA_ARCHITECTURES=90 in the environment builds for ' +
                'compute capability 9.0 all the same',
            'BUILD_IMPOSSIBLE'
        );
    }
    return found.map((capability) => capability.replace('.', '')).join(';');
}

/** The version of node-llama-cpp, and so of llama.cpp. */
function llamaVersion({ bundle }) {
    return JSON.parse(fs.readFileSync(path.resolve(path.dirname(bundle), '..', 'package.json'), 'utf8')).version;
}

/** The hash of all that the addon depends on, and of where it finds ggml. */
function sourceStamp(packages, place) {
    const hash = createHash('sha256');
    hash.update(JSON.stringify([llamaVersion(packages), process.platform, process.arch, place]));
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

/** Leaves the addon in cmake's folder. */
async function build({ usesPrebuilt, place = '', progress, stopped }) {
    checkTools();
    const unfinished = path.join(buildFolder, 'unfinished');
    if (fs.existsSync(unfinished)) {
        // A build that was killed may have left half an object file, and a compiler that is still at work.
        fs.rmSync(cmakeFolder, { recursive: true, force: true, maxRetries: 5, retryDelay: 500 });
    }
    fs.writeFileSync(unfinished, '');
    fs.writeFileSync(logFile, '');
    await compile({ usesPrebuilt, place, progress, stopped }).finally(() => {
        // Compilers that are stopped delete what they have not finished, except on Windows.
        if (!windows || !stopped.aborted) {
            fs.rmSync(unfinished);
        }
    });
}

/** An addon that doesn't load must not take the place of one that does, so it is tried under another name. */
async function putInPlace(addon, progress, stopped) {
    const built = `${addonPath}.new`;
    fs.copyFileSync(addon, built);
    const load = `process.dlopen(module, ${JSON.stringify(built)}); module.exports.devices()`;
    if (!(await run(process.execPath, ['-e', load], { progress, stopped }))) {
        fs.rmSync(built, { force: true });
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

async function compile({ usesPrebuilt, place, progress, stopped }) {
    await prepare({ usesPrebuilt, place, progress, stopped });
    const parts = usesPrebuilt ? 'llama.cpp and the addon' : 'llama.cpp, ggml and the addon';
    progress.phase(`Compiling ${parts} (${usesPrebuilt ? 'about two minutes' : 'several minutes'}, once)`);
    if (!(await cmakeJs('build', ['--parallel', String(jobs())], { progress, stopped }))) {
        throw failure('The addon could not be compiled');
    }
}

/** Unpacks llama.cpp, and prepares its build. */
async function prepare({ usesPrebuilt, place = '', progress, stopped }) {
    const values = {
        PREBUILT_GGML: usesPrebuilt ? 'ON' : 'OFF',
        BUILD_FOLDER: buildFolder,
        PLACE: place || 'OFF' // an empty value isn't handed on
    };
    const defines = Object.entries(values).map(([name, value]) => `--CDBLOCKPRUNER_${name}=${value}`);
    const configure = () =>
        cmakeJs('configure', [...defines, `--CDNODE_EXECUTABLE=${process.execPath}`], { progress, stopped });
    progress.phase('Preparing the build of the addon');
    const isFresh = !fs.existsSync(cmakeFolder);
    if (!(await configure())) {
        // What cmake keeps may be of a folder that has moved since, or of a compiler that is gone.
        fs.rmSync(cmakeFolder, { recursive: true, force: true });
        if (isFresh || !(await configure())) {
            throw failure('The build of the addon could not be prepared');
        }
    }
}

function cmakeJs(command, options, running) {
    const program = path.join(path.dirname(require.resolve('cmake-js/package.json')), 'bin', 'cmake-js');
    const where = ['--directory', packageFolder, '--out', cmakeFolder, '--target', 'blockpruner'];
    return run(process.execPath, [program, command, ...where, ...options], running);
}

/** How many compilers run at once: one for each processor, as far as there is memory, of which each takes 300 MB. */
function jobs() {
    const memory = Math.min(os.totalmem(), process.constrainedMemory() || Infinity);
    return Math.max(1, Math.min(os.availableParallelism(), Math.floor(memory / 0.5e9)));
}

/** The environment for commands: ours without what git sets for its hooks, and make for the programs that it runs. */
function environment() {
    const env = { ...process.env };
    const git = ['GIT_DIR', 'GIT_WORK_TREE', 'GIT_INDEX_FILE'];
    const make = ['MAKEFLAGS', 'MAKEOVERRIDES', 'MAKELEVEL', 'MFLAGS'];
    for (const name of [...git, ...make]) {
        delete env[name];
    }
    return env;
}

/**
 * Runs a command. What it prints goes into the log, and the progress in it to the user.
 * @returns whether it succeeded
 */
function run(command, args, { progress, stopped, logFile: file = logFile }) {
    stopped.throwIfAborted();
    return new Promise((resolve, reject) => {
        const log = fs.createWriteStream(file, { flags: 'a' });
        const child = spawn(command, args, {
            cwd: packageFolder,
            env: environment(),
            detached: !windows, // a process group of its own, so that cmake and the compilers can be stopped with it
            windowsHide: true,
            stdio: ['ignore', 'pipe', 'pipe']
        });
        const kill = () => stopGroup(child);
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

/** Stops a process and all that it has started. */
function stopGroup(child) {
    if (windows) {
        spawnSync('taskkill', ['/T', '/F', '/PID', String(child.pid)]);
        return;
    }
    try {
        process.kill(-child.pid, 'SIGTERM');
    } catch {
        // it has ended already
    }
}

/** An error with a message, the part of the log that says why, and where the rest is. */
function failure(message, file = logFile) {
    const lines = fs.readFileSync(file, 'utf8').trimEnd().split('\n');
    const first = lines.findIndex((line) => /^CMake Error|^FAILED|\berror\b ?[:A-Z]|^fatal:|^Error:/.test(line));
    const shown = first < 0 ? lines.slice(-12) : lines.slice(first, first + 12);
    return new BuildError(
        [`${message}:`, '', ...shown.map((line) => `    ${line.slice(0, 160)}`), '', `All of it: ${file}`].join('\n')
    );
}

module.exports = { addonPath, buildBackend, builtBackend, ensureBuilt, BuildError };

if (require.main === module) {
    const work = process.argv.includes('--prebuilt')
        ? prebuild()
        : ensureBuilt({ force: process.argv.includes('--force') });
    work.catch((error) => {
        console.error(error instanceof BuildError ? error.message : error);
        const goOn = error.code === 'BUILD_IMPOSSIBLE' && process.argv.includes('--install');
        if (goOn) {
            console.error('The addon will be built when blockpruner is first used.');
        }
        process.exitCode = goOn ? 0 : error.code === 'BUILD_INTERRUPTED' ? 130 : 1;
    });
}
