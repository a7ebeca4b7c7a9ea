'use strict';
// A build that runs once, however many processes ask for it: its lock, its progress and its errors. What is built is
// the affair of build.js.

const fs = require('node:fs');
const path = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');

/** A failure that the user can act on: its message says all there is to know, and a stack would add nothing. */
class BuildError extends Error {
    name = 'BuildError';

    /**
     * @param {string} message
     * @param {'BUILD_FAILED' | 'BUILD_IMPOSSIBLE' | 'BUILD_INTERRUPTED'} code It is BUILD_IMPOSSIBLE where a tool is
     *     missing or the folder is read-only.
     */
    constructor(message, code = 'BUILD_FAILED') {
        super(message);
        this.code = code;
    }
}

/**
 * Calls build(), which must leave a product in a folder, unless its stamp says that this was done. Processes that ask
 * at the same time wait for the one that builds, and then find it done. build gets a Progress and an AbortSignal.
 * @param product the file's name
 * @param name what it is, for messages
 */
async function buildOnce({
    folder,
    stamp,
    log,
    force = false,
    build,
    product = 'blockpruner.node',
    name = 'the addon'
}) {
    const stampFile = stampOf(folder, product);
    const isUpToDate = () => isBuilt(folder, product, (found) => found === stamp);
    if (!force && isUpToDate()) {
        return;
    }
    const progress = new Progress(log);
    const stop = new AbortController();
    const unlock = await lock(folder, progress, stop, name);
    const stopOn = (signal) =>
        stop.abort(new BuildError(`the build of ${name} was interrupted (${signal})`, 'BUILD_INTERRUPTED'));
    const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'];
    signals.forEach((signal) => process.on(signal, stopOn));
    try {
        if (!force && isUpToDate()) {
            return; // the process that held the lock has built it
        }
        fs.mkdirSync(folder, { recursive: true });
        await build(progress, stop.signal);
        stop.signal.throwIfAborted();
        fs.writeFileSync(`${stampFile}.new`, stamp);
        fs.renameSync(`${stampFile}.new`, stampFile);
        progress.phase(`${name[0].toUpperCase()}${name.slice(1)} is built`);
    } catch (error) {
        throw readOnlyError(error, folder) ?? error;
    } finally {
        progress.end();
        signals.forEach((signal) => process.off(signal, stopOn));
        await unlock();
    }
}

/** The file beside a product that says what it was built from. */
function stampOf(folder, product) {
    return path.join(folder, `${path.parse(product).name}.stamp`);
}

/** Whether a product is there, complete, and built from what is wanted, going by its stamp. */
function isBuilt(folder, product, isWanted) {
    const stampFile = stampOf(folder, product);
    return (
        fs.existsSync(path.join(folder, product)) &&
        fs.existsSync(stampFile) &&
        isWanted(fs.readFileSync(stampFile, 'utf8'))
    );
}

/**
 * Takes the lock, which is a folder `build.lock` beside `build`, since node-gyp empties `build`. As long as its owner
 * lives, it refreshes the lock's time, so that one of more than 20 seconds has lost its owner and is taken over.
 * @returns a function that releases it
 */
async function lock(folder, progress, stop, name) {
    const lockfile = require('proper-lockfile');
    const onCompromised = () =>
        stop.abort(new BuildError(`another process has taken over the build of ${name}; try again`));
    for (let waiting = false; ; waiting = true) {
        try {
            const options = { realpath: false, stale: 20_000, update: 5_000, onCompromised };
            const release = await lockfile.lock(folder, options);
            return () => release().catch(() => {}); // a lock that was taken over is not ours to release
        } catch (error) {
            if (error.code !== 'ELOCKED') {
                throw readOnlyError(error, folder) ?? error;
            }
        }
        if (!waiting) {
            progress.phase(`Another process is building ${name}: waiting for it`);
        }
        await sleep(500);
    }
}

/** What to say of an error that comes from a folder which can't be written; undefined for any other error. */
function readOnlyError(error, folder) {
    const parent = path.dirname(folder);
    return ['EACCES', 'EPERM', 'EROFS'].includes(error.code)
        ? new BuildError(
              `The addon of blockpruner must be built, and ${parent} can't be written (${error.code}).\n` +
                  `Build it once as a user who can: node "${path.join(__dirname, 'build.js')}"\n` +
                  'or set BLOCKPRUNER_BUILD_FOLDER to a folder that you can write',
              'BUILD_IMPOSSIBLE'
          )
        : undefined;
}

/** Tells how far the build is: on a terminal in a line that changes, else in a line for each phase and each 10 %. */
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

    /** Takes a line of cmake, or of what cmake runs: ninja ("[12/53] Building") or make ("[ 12%] Building"). */
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

    /** Says something that stays to be read. */
    note(text) {
        this.#log(this.#terminal ? `\r\x1b[K${text}` : text);
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

module.exports = { BuildError, buildOnce, isBuilt };
