import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { addonPath, ensureBuilt } from '../../install/build.js';
import { buildOnce } from '../../install/once.js';

const installFolder = path.resolve(__dirname, '../../install');
const buildScript = path.join(installFolder, 'build.js');
let folder: string;

beforeEach(() => {
    folder = fs.mkdtempSync(path.join(os.tmpdir(), 'blockpruner-build-'));
});
afterEach(() => {
    fs.rmSync(folder, { recursive: true, force: true });
});

/** A process that calls buildOnce on our folder; its build notes that it ran, takes some time, and makes the addon. */
function buildElsewhere(milliseconds: number): ChildProcess & { printed: () => string } {
    const child = spawn(
        process.execPath,
        [
            '-e',
            `
        const fs = require('node:fs');
        const { setTimeout: sleep } = require('node:timers/promises');
        require(${JSON.stringify(path.join(installFolder, 'once.js'))}).buildOnce({
            folder: 'build',
            stamp: 'the sources',
            log: line => console.log(line),
            build: async (progress, stopped) => {
                fs.appendFileSync('builds', 'x');
                await sleep(${milliseconds}, null, { signal: stopped }).catch(() => stopped.throwIfAborted());
                fs.writeFileSync('build/blockpruner.node', 'complete');
            }
        }).catch(error => {
            console.log(error.code);
            process.exitCode = 1;
        });
    `
        ],
        { cwd: folder, stdio: ['ignore', 'pipe', 'inherit'] }
    );
    let printed = '';
    child.stdout.on('data', (text) => (printed += String(text)));
    return Object.assign(child, { printed: () => printed });
}

const ended = (child: ChildProcess) => new Promise<number | null>((resolve) => child.on('close', resolve));

async function until(condition: () => boolean): Promise<void> {
    while (!condition()) {
        await new Promise((resolve) => setTimeout(resolve, 20));
    }
}

const builds = () =>
    fs.existsSync(path.join(folder, 'builds')) ? fs.readFileSync(path.join(folder, 'builds'), 'utf8').length : 0;
const lockFolder = () => path.join(folder, 'build.lock');

function buildHere(
    stamp: string,
    build = () => fs.writeFileSync(path.join(folder, 'build', 'blockpruner.node'), stamp)
): Promise<void> {
    return buildOnce({
        folder: path.join(folder, 'build'),
        stamp,
        log: () => {},
        build: () => {
            fs.appendFileSync(path.join(folder, 'builds'), 'x');
            build();
            return Promise.resolve();
        }
    });
}

(process.platform === 'linux' ? test : test.skip)('the CUDA backend is built once for each kind of card', () => {
    // a package with the addon of this one, and a cmake that makes nothing but the file
    const root = path.dirname(installFolder);
    const at = (...names: string[]) => path.join(folder, ...names);
    fs.cpSync(installFolder, at('install'), { recursive: true });
    for (const name of ['native', 'node_modules', 'CMakeLists.txt', 'package.json']) {
        fs.symlinkSync(path.join(root, name), at(name));
    }
    fs.mkdirSync(at('build', 'cmake', 'llama.cpp', 'ggml'), { recursive: true });
    for (const name of ['blockpruner.node', 'blockpruner.stamp']) {
        fs.copyFileSync(path.join(root, 'build', name), at('build', name));
    }
    fs.mkdirSync(at('bin'));
    const program = (name: string, does: string) =>
        fs.writeFileSync(at('bin', name), `#!/bin/sh\n${does}\n`, { mode: 0o755 });
    program('nvcc', 'true');
    program('cmake', '[ "$1" != --build ] || { mkdir -p "$2/bin"; echo $$ > "$2/bin/libggml-cuda.so"; }');
    const build = (architectures: string) => {
        const script = `require('./install/build.js').buildBackend('cuda', { log: () => {} }).then(console.log)`;
        const { stdout, stderr } = spawnSync(process.execPath, ['--preserve-symlinks', '-e', script], {
            cwd: folder,
            encoding: 'utf8',
            env: {
                ...process.env,
                BLOCKPRUNER_CUDA_ARCHITECTURES: architectures,
                PATH: `${at('bin')}:${process.env.PATH}`
            }
        });
        expect({ stdout, stderr }).toEqual({ stdout: `${at('build', 'cuda', 'libggml-cuda.so')}\n`, stderr: '' });
        return fs.readFileSync(stdout.trim(), 'utf8');
    };
    const first = build('90');
    expect(build('90')).toBe(first);
    expect(build('80')).not.toBe(first);
});

describe('the addon', () => {
    test('is not built again when it is up to date', async () => {
        const { mtimeMs } = fs.statSync(addonPath);
        const lines: string[] = [];
        const start = performance.now();
        await ensureBuilt({ log: (line) => lines.push(line) });
        expect(performance.now() - start).toBeLessThan(1000);
        expect(lines).toEqual([]);
        expect(fs.statSync(addonPath).mtimeMs).toBe(mtimeMs);
    });

    test('loads', () => {
        const { status, stderr } = spawnSync(
            process.execPath,
            ['-e', `require(${JSON.stringify(addonPath)}).devices()`],
            { encoding: 'utf8' }
        );
        expect(stderr).toBe('');
        expect(status).toBe(0);
    });
});

// fake tools are shell scripts
const onPosix = process.platform === 'win32' ? describe.skip : describe;

onPosix('a missing tool', () => {
    function buildWith(fakes: Record<string, string>, ...options: string[]) {
        for (const [name, prints] of Object.entries(fakes)) {
            fs.writeFileSync(path.join(folder, name), `#!/bin/sh\necho '${prints}'\n`, { mode: 0o755 });
        }
        return spawnSync(process.execPath, [buildScript, '--force', ...options], {
            encoding: 'utf8',
            env: { ...process.env, PATH: folder }
        });
    }
    const all = { cmake: 'cmake version 3.31.0', 'g++': 'g++ 12', ninja: '1.11', git: 'git version 2.40' };

    test.each([
        ['cmake', 'CMake 3.21 or newer', 'apt install cmake'],
        ['g++', 'a C++ compiler', 'apt install build-essential'],
        ['ninja', 'a C++ compiler', 'apt install build-essential'],
        ['git', 'Git', 'apt install git']
    ])('%s is named, with what to install', (tool, name, command) => {
        const { status, stderr } = buildWith(
            Object.fromEntries(Object.entries(all).filter(([other]) => other !== tool))
        );
        expect(status).toBe(1);
        expect(stderr).toMatch(`this machine lacks ${name}. To install`);
        expect(stderr).toMatch(command);
        for (const system of ['Fedora', 'macOS', 'Windows']) {
            expect(stderr).toMatch(system);
        }
        expect(stderr).not.toMatch(/^ {4}at /m);
    });

    test('a cmake that is too old counts as missing', () => {
        expect(buildWith({ ...all, cmake: 'cmake version 3.18.4' }).stderr).toMatch('lacks CMake 3.21 or newer.');
    });

    test('does not fail npm install', () => {
        const { status, stderr } = buildWith({}, '--install');
        expect(stderr).toMatch('lacks CMake 3.21 or newer, a C++ compiler, Git.');
        expect(stderr).toMatch('when blockpruner is first used');
        expect(status).toBe(0);
    });
});

describe('buildOnce', () => {
    test('builds when the sources change, and only then', async () => {
        await buildHere('one');
        await buildHere('one');
        expect(builds()).toBe(1);
        await buildHere('two');
        expect(builds()).toBe(2);
        fs.rmSync(path.join(folder, 'build', 'blockpruner.node'));
        await buildHere('two');
        expect(builds()).toBe(3);
    });

    test('builds again after a build that failed', async () => {
        await expect(
            buildHere('one', () => {
                fs.writeFileSync(path.join(folder, 'build', 'blockpruner.node'), 'half');
                throw new Error('no space');
            })
        ).rejects.toThrow('no space');
        expect(fs.existsSync(lockFolder())).toBe(false);
        await buildHere('one');
        expect(builds()).toBe(2);
    });

    test('builds once when two processes start at the same time', async () => {
        const two = [buildElsewhere(1500), buildElsewhere(1500)];
        expect(await Promise.all(two.map(ended))).toEqual([0, 0]);
        expect(builds()).toBe(1);
        const waited = two.filter((child) => child.printed().includes('Another process is building the addon'));
        expect(waited).toHaveLength(1);
        expect(fs.existsSync(lockFolder())).toBe(false);
    });

    test('takes over from a process that was killed', async () => {
        const killed = buildElsewhere(60_000);
        await until(() => builds() === 1);
        killed.kill('SIGKILL');
        await ended(killed);
        expect(fs.existsSync(lockFolder())).toBe(true);
        const aMinuteAgo = new Date(Date.now() - 60_000);
        fs.utimesSync(lockFolder(), aMinuteAgo, aMinuteAgo);
        await buildHere('the sources');
        expect(builds()).toBe(2);
    });

    (process.platform === 'win32' ? test.skip : test)('releases the lock when it is interrupted', async () => {
        const interrupted = buildElsewhere(60_000);
        await until(() => builds() === 1);
        interrupted.kill('SIGINT');
        expect(await ended(interrupted)).toBe(1);
        expect(interrupted.printed()).toMatch('BUILD_INTERRUPTED');
        expect(fs.existsSync(lockFolder())).toBe(false);
        expect(fs.existsSync(path.join(folder, 'build', 'blockpruner.stamp'))).toBe(false);
    });

    test('says so when the folder is read-only', async () => {
        const failure = Object.assign(new Error('mkdir'), { code: 'EROFS' });
        await expect(
            buildHere('one', () => {
                throw failure;
            })
        ).rejects.toMatchObject({
            code: 'BUILD_IMPOSSIBLE',
            message: expect.stringContaining(`${folder} can't be written`) as string
        });
    });
});
