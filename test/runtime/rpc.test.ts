// Models that are spread over two servers, by llama.cpp's RPC backend built from the bundled source, against the same
// on this computer.
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { prune, type PruneOptions } from '../../lib/index.js';
import { backendFolders, buildBackend } from '../../lib/runtime/addon.js';
import { expectRefused, run, start } from '../cli/run';
import { temporaryFolder, tiny } from '../models';

const folder = temporaryFolder();
const file = (name: string) => path.join(folder, name);
const text = path.resolve(__dirname, '../../models/calibration.txt');

async function freePort(): Promise<number> {
    return new Promise((resolve) => {
        const server = net.createServer().listen(0, '127.0.0.1', () => {
            const { port } = server.address() as net.AddressInfo;
            server.close(() => resolve(port));
        });
    });
}

// A ggml that was compiled with the addon loads no backends.
(backendFolders.cpu === '' ? describe.skip : describe)('on two servers', () => {
    const servers: { at: string; process: ReturnType<typeof start> }[] = [];
    const serve = async (port: number) => {
        const server = start('rpc-server', '--port', String(port), '--device', 'cpu', '--threads', '1');
        for (const end = Date.now() + 30_000; ;) {
            const isThere = await new Promise((resolve) => {
                const socket = net.connect(port, '127.0.0.1', () => (socket.destroy(), resolve(true)));
                socket.on('error', () => resolve(false));
            });
            if (isThere) {
                return server;
            }
            expect(Date.now()).toBeLessThan(end);
            await new Promise((resolve) => setTimeout(resolve, 50));
        }
    };
    beforeAll(async () => {
        await buildBackend('rpc');
        for (let i = 0; i < 2; i++) {
            const port = await freePort();
            servers.push({ at: `127.0.0.1:${port}`, process: await serve(port) });
        }
    }, 240_000);
    afterAll(() => servers.forEach((one) => one.process.kill()));
    const addresses = () => servers.map(({ at }) => at).join(',');

    test('perplexity is the same', async () => {
        const args = [
            'perplexity',
            tiny,
            '--text',
            text,
            '--samples',
            '4',
            '--context',
            '64',
            '--threads',
            '1',
            '--json'
        ];
        const here = await run(...args, '--device', 'cpu');
        const there = await run(...args, '--rpc', addresses());
        expect({ code: there.code, stderr: there.stderr }).toEqual({ code: 0, stderr: '' });
        const [ours, theirs] = [here, there].map(({ stdout }) => JSON.parse(stdout) as { nll: number });
        expect(theirs!.nll / ours!.nll).toBeCloseTo(1, 6);
    });

    test('a search and a repair find the same, and go on when a server is back', async () => {
        const options: Omit<PruneOptions, 'output'> = {
            remove: 2,
            method: 'blockpruner',
            search: 'exact',
            calibration: { file: 'embedded', samples: 4, context: 48 },
            repairTokens: 4096,
            threads: 1
        };
        const here = await prune(tiny, { ...options, output: file('here.gguf'), device: 'cpu' });
        const args = ['prune', tiny, '-o', file('there.gguf'), '--rpc', addresses(), '--json'];
        const search = ['--remove', '2', '--method', 'blockpruner', '--search', 'exact', '--threads', '1'];
        const calibration = [
            '--calibration',
            'embedded',
            '--samples',
            '4',
            '--context',
            '48',
            '--repair-tokens',
            '4096'
        ];
        const broken = start(...args, ...search, ...calibration);
        while (!broken.stderr().includes('  1. ')) {
            await new Promise((resolve) => setTimeout(resolve, 10));
        }
        servers[1]!.process.kill();
        const { code, stderr } = await broken.ended;
        expect(code).not.toBe(0);
        expect(stderr).toMatch(/ggml-rpc\.cpp:\d+/); // what llama.cpp says of it

        servers[1]!.process = await serve(Number(servers[1]!.at.split(':')[1]));
        const resumed = await run(...args, ...search, ...calibration, '--resume');
        expect({ code: resumed.code, error: resumed.code === 0 ? '' : resumed.stderr }).toEqual({ code: 0, error: '' });
        const there = JSON.parse(resumed.stdout) as typeof here;
        expect(there.removed).toEqual(here.removed);
        expect(there.perplexity.pruned / here.perplexity.pruned).toBeCloseTo(1, 5);
        expect(fs.statSync(file('there.gguf')).size).toBe(fs.statSync(file('here.gguf')).size);
    });

    test('servers that are not there, or none, are refused in one line', async () => {
        const args = ['perplexity', tiny, '--text', text];
        await expectRefused(
            folder,
            [...args, '--rpc', '127.0.0.1:1'],
            /RPC can't be used: Failed to connect to 127.0.0.1:1$/m
        );
        await expectRefused(folder, [...args, '--rpc', 'host'], "--rpc must be servers such as host:50052, not 'host'");
        await expectRefused(
            folder,
            [...args, '--rpc', addresses(), '--device', 'cpu'],
            '--rpc computes on servers: leave out --device'
        );
    });
});
