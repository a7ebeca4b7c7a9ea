// The command line as a user meets it: dist/cli/index.js in a process of its own.
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';

export interface Ended {
    code: number | null;
    /** what ended it, where it did not end by itself */
    signal: string | null;
    stdout: string;
    stderr: string;
}

/** One thread: more wait for each other where the cores are busy with something else. */
export const onCpu = ['--device', 'cpu', '--threads', '1'];
export const short = ['--calibration', 'embedded', '--samples', '1', '--context', '32', ...onCpu];
/** The same for what prunes, as the paper does: a repair takes seconds, and has tests of its own. */
export const shortPrune = [...short, '--repair', 'none'];
/** A search that takes a second: one attention block, by 32 tokens. */
export const shortSearch = ['--blocks', 'attn', '--remove', '1', ...shortPrune];

/** Starts Node.js on a script; `interrupt` is Ctrl-C in its terminal, which child processes get too. */
export function startNode(args: string[]): {
    ended: Promise<Ended>;
    stderr: () => string;
    interrupt: () => void;
    kill: () => void;
    pause: () => void;
    goOn: () => void;
} {
    const child = spawn(process.execPath, args, {
        env: process.env,
        stdio: ['ignore', 'pipe', 'pipe'],
        detached: process.platform !== 'win32'
    });
    let stdout = '',
        stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text) => (stdout += text));
    child.stderr.setEncoding('utf8').on('data', (text) => (stderr += text));
    return {
        ended: new Promise((resolve) => child.on('close', (code, signal) => resolve({ code, signal, stdout, stderr }))),
        stderr: () => stderr,
        interrupt: () => process.kill(-child.pid!, 'SIGINT'),
        kill: () => child.kill('SIGKILL'),
        pause: () => child.kill('SIGSTOP'),
        goOn: () => child.kill('SIGCONT')
    };
}

export function start(...args: string[]): ReturnType<typeof startNode> {
    return startNode([path.resolve(__dirname, '../../dist/cli/index.js'), ...args]);
}

export function run(...args: string[]): Promise<Ended> {
    return start(...args).ended;
}

/**
 * Whether a folder has the draft of a model. Empty files of a like name, which only show that the folder can be written
 * to, are there for a moment before any work.
 */
export function hasDraft(folder: string): boolean {
    return fs.readdirSync(folder).some((name) => /partial.*\.gguf$/.test(name));
}

/** Runs a command that must succeed and print one JSON object, nothing else, on stdout. */
export async function runJson<T>(...args: string[]): Promise<T> {
    const { code, stdout, stderr } = await run(...args, '--json');
    expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout.trimEnd().split('\n')).toHaveLength(1);
    return JSON.parse(stdout) as T;
}

/** Runs a command that must fail as a user should see it: in one line that names the wrong input, with no file left. */
export async function expectRefused(folder: string, args: string[], says: string | RegExp): Promise<void> {
    const before = fs.readdirSync(folder);
    const { stderr, ...rest } = await run(...args);
    expect(rest).toEqual({ code: 1, signal: null, stdout: '' });
    expect(stderr.trimEnd().split('\n')).toEqual([expect.stringMatching(/^blockpruner: /)]);
    expect(stderr).toMatch(says);
    expect(stderr).not.toMatch(/ {4}at |\bundefined\b|\bNaN\b|\[object/);
    const after = fs.readdirSync(folder);
    const isDeadLock = (name: string) => name.endsWith('.lock') && !after.includes(name); // what was killed left it
    expect(after).toEqual(before.filter((name) => !isDeadLock(name)));
}
